"""The report over many runs.

`collect` finds them, `settings` says which belong together, `tables` makes rows of them, `grids`
formats the figures, `importances` and `figures` draw, `render` writes page, Markdown and CSV.
"""

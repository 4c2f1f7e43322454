"""The report over many runs: `runs` reads them into a table, `variants` says which belong together.

`tables` counts and averages, `plots` draws, `page` writes HTML, Markdown and CSV.
"""

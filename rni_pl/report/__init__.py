"""The report over many runs.

`collect` finds them, `settings` says which belong together, `tables` makes rows of them, `grids`
formats the figures, `importances` and `plots` draw, `render` writes page, Markdown and CSV.
`departures` says where a run leaves the paper's recipe, and `budgets` how long it took;
`comparison` makes tables of these, `papers` one beside what is `published`. `pages` fills documents
with them, and `storing` keeps what they need.
"""

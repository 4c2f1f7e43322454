"""A run and its directory, below training: what it is, what it keeps, how it goes on.

`files` names what a run keeps and writes it whole. `stored` is its configuration, read back without
torch. `directory` refuses, resumes or overwrites, and locks. `spec` describes a network,
`checkpoint` reads one, `resume` finds the newest sound one of a run. `summary` is the figures.
"""

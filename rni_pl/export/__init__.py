"""From a checkpoint to one file that runs elsewhere.

Reads in the order `folding`, `aligning`, `formats`, `exporting`.
"""

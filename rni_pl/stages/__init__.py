"""Training, and pruning with fine-tuning: each a run in a directory, which can be gone on with.

`dispatch` runs a stage by name, in one process or several; `training` and `finetuning` are the two;
the rest is what they share.
"""

"""Training, and pruning with fine-tuning: each a run in a directory, which can be gone on with.

`dispatch` runs a stage by name, in one process or several (`launch`). `training` and `finetuning`
are the two, with what belongs to one of them (`warmstart`, `inheriting`) and what they share: data
and trainer (`runs`), the files of a run (`rundir`, `earlier`, `resume`), its figures (`summary`),
signals (`interruption`), what the jobs of a sweep have in common (`sharing`), and what a stage
hands back (`outcome`).
"""

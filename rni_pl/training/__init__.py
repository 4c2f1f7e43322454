"""The two stages of a run: sparsity training, and pruning with fine-tuning.

`sparsity` and `finetuning` tell them from top to bottom. `module` is Lightning's, with its `recipe`
of optimiser and schedule (`schedulers`) and its `losses`. `network` makes the network
to begin with (`warmstart` reads weights of others), `inherit` has fine-tuning take over what the
network was trained on, `fitting` makes data and recipe, fits and tests, `trainer` makes
Lightning's. `launch` runs a stage by
name, in one process or several; `signals` and `sharing` are about the process, `hardware` about the
machine.
"""

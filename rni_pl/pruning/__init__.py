"""The pruning engine: trace the channel graph, score, select, remove.

Plain PyTorch; reads in the order `graph` (with `flow` and `ops`), `scores`, `selection`,
`surgery`, `oneshot`.
"""

from rni_pl.pruning.oneshot import PruningReport, prune

__all__ = ["PruningReport", "prune"]

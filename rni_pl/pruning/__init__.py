"""The pruning engine: trace the channel graph, score, select, remove.

Plain PyTorch. Reads in the order `graph` (with `tracing`, `flow`, `ops`, `numbering`, `kinds`),
`scores`, `selection` (with `cost`, `budget`, `valley`), `plan`, `surgery`, `absorb`, `recalibrate`,
`oneshot`.
"""

from rni_pl.pruning.oneshot import PruningReport, prune
from rni_pl.pruning.plan import Request
from rni_pl.pruning.recalibrate import recalibrate

__all__ = ["PruningReport", "Request", "prune", "recalibrate"]

"""The pruning engine: trace the channel graph, score, select, remove.

Plain PyTorch. Reads in the order `tracing` (with `standins`, `reads`, `meta`), `numbering`, `flow`
(with `aliases`), `ops` (with `kinds`, `padding`, `probe`), `graph`, then `scores`, `selection`
(with `cost`, `budget`, `valley`), `plan`, `surgery`, `oneshot` (with `modes`, `absorb`,
`recalibrate`).
"""

from rni_pl.pruning.oneshot import PruningReport, prune
from rni_pl.pruning.plan import Request
from rni_pl.pruning.recalibrate import recalibrate
from rni_pl.pruning.surgery import resize, structure_of

__all__ = ["PruningReport", "Request", "prune", "recalibrate", "resize", "structure_of"]

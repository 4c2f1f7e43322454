"""The pruning engine: propagate ids of channels, score, select, remove, verify.

Plain PyTorch. Reads in the order `ids`, `ops`, `channels`, then the op rules in `rules`, `layers`
and `moves` (with `shapes`), `propagate`, `watch`, `dependency` and `trace`, then `importance`,
`selection`, `plan`, `surgery`, `verify`, `oneshot` (with `absorb` and `report`).
"""

from rni_pl.pruning.oneshot import prune
from rni_pl.pruning.plan import PruningOptions
from rni_pl.pruning.report import PruningReport
from rni_pl.structure import resize, structure_of

__all__ = ["PruningOptions", "PruningReport", "prune", "resize", "structure_of"]

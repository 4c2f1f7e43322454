"""The pruning engine: propagate ids of channels, score, select, remove, check, compare.

Plain PyTorch. Read in the order of the data: `ids` and `ops` (what a run knows of tensors and
operations), `run`, `channels` and `propagate` (running a network with ids on its channels), the op
rules in `rules`, `layers` and `moves` (with `shapes`), `trace` (with `mode`) and `dependency` (the
groups that come of it), `selection`, `costs` and `plan` (scores to a mask), `surgery` (removal),
`check` and `verify` (the proofs), `oneshot` (all of it, with `absorb` and `report`).

`importance` is what channels are ranked by, `patterns` names layers, `planfile` is a plan as plain
values, and `inplace` prunes in the middle of training.
"""

from rni_pl.pruning.importance import Importance, Taylor
from rni_pl.pruning.inplace import prune_in_place
from rni_pl.pruning.oneshot import prune
from rni_pl.pruning.plan import PruningOptions
from rni_pl.pruning.report import PruningReport
from rni_pl.pruning.structure import resize, structure_of

__all__ = [
    "Importance",
    "PruningOptions",
    "PruningReport",
    "Taylor",
    "prune",
    "prune_in_place",
    "resize",
    "structure_of",
]

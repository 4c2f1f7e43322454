"""Lightning callbacks: thin glue around the plain functions of the core."""

from rni_pl.callbacks.checkpoints import BestCheckpoint, LastCheckpoint
from rni_pl.callbacks.continuation import Continuation
from rni_pl.callbacks.divergence import StopOnDivergence
from rni_pl.callbacks.gradual_pruning import GradualPruning
from rni_pl.callbacks.history import History
from rni_pl.callbacks.interruption import StopOnSignal
from rni_pl.callbacks.lines import EpochLines
from rni_pl.callbacks.model_summary import ModelSummary
from rni_pl.callbacks.monitor import Monitor
from rni_pl.callbacks.one_shot_pruning import OneShotPruning
from rni_pl.callbacks.shrink import Shrink
from rni_pl.callbacks.sparsity import SparsityRegulariser
from rni_pl.callbacks.sync_batchnorm import SyncBatchNorm

__all__ = [
    "BestCheckpoint",
    "Continuation",
    "EpochLines",
    "GradualPruning",
    "History",
    "LastCheckpoint",
    "ModelSummary",
    "Monitor",
    "OneShotPruning",
    "Shrink",
    "SparsityRegulariser",
    "StopOnDivergence",
    "StopOnSignal",
    "SyncBatchNorm",
]

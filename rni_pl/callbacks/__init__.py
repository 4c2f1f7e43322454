"""Lightning callbacks: thin glue around the plain functions of the core."""

from rni_pl.callbacks.history import History
from rni_pl.callbacks.pruning import OneShotPruning
from rni_pl.callbacks.sparsity import SparsityRegulariser

__all__ = ["History", "OneShotPruning", "SparsityRegulariser"]

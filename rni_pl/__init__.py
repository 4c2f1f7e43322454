"""Structured channel pruning driven by BatchNorm scales, on PyTorch Lightning."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rni_pl import models
    from rni_pl.api import prune_finetune, train
    from rni_pl.errors import RniError
    from rni_pl.norm import (
        SigmoidBatchNorm,
        SigmoidBatchNorm1d,
        SigmoidBatchNorm2d,
        SigmoidBatchNorm3d,
        convert_batchnorm,
    )
    from rni_pl.pruning import prune, prune_in_place
    from rni_pl.runs.checkpoint import load_model

__version__ = "0.1.0"

# Imported on first use, so that `--help` and configuration errors need not wait for torch.
_HOMES = {
    "RniError": "rni_pl.errors",
    "SigmoidBatchNorm": "rni_pl.norm",
    "SigmoidBatchNorm1d": "rni_pl.norm",
    "SigmoidBatchNorm2d": "rni_pl.norm",
    "SigmoidBatchNorm3d": "rni_pl.norm",
    "convert_batchnorm": "rni_pl.norm",
    "l1_penalty": "rni_pl.regularisers",
    "load_model": "rni_pl.runs.checkpoint",
    "models": "rni_pl.models",
    "prune": "rni_pl.pruning",
    "prune_finetune": "rni_pl.api",
    "prune_in_place": "rni_pl.pruning",
    "rni_penalty": "rni_pl.regularisers",
    "train": "rni_pl.api",
}

__all__ = [
    "RniError",
    "SigmoidBatchNorm",
    "SigmoidBatchNorm1d",
    "SigmoidBatchNorm2d",
    "SigmoidBatchNorm3d",
    "convert_batchnorm",
    "l1_penalty",
    "load_model",
    "models",
    "prune",
    "prune_finetune",
    "prune_in_place",
    "rni_penalty",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'rni_pl' has no attribute {name!r}")
    home = import_module(_HOMES[name])
    return home if name == "models" else getattr(home, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])

"""The scales of a network's BatchNorm layers, which rank its channels."""

from collections.abc import Iterator
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rni_pl.norm.sigmoid import REPLACED, SigmoidBatchNorm, SigmoidBatchNormAct2d

NAMES = {"bn": "BatchNorm", "sigbn": "SigBN"}  # of the kinds of norm layers
PLAIN = {kind.forward for pair in REPLACED.items() for kind in pair}  # nothing but the norm


def scale(norm: _BatchNorm) -> Tensor:
    """The factor that a norm layer multiplies each channel by, shape (C,)."""
    if isinstance(norm, SigmoidBatchNorm):
        return torch.sigmoid(norm.weight)
    return norm.weight


def after_norm(norm: _BatchNorm) -> dict[str, nn.Module] | None:
    """The dropout and activation that timm's BatchNorm carries, by name; empty: there is none.

    None: the subclass computes something else of its own.
    """
    if type(norm).forward in PLAIN:
        return {}
    ours = type(norm).forward is SigmoidBatchNormAct2d.forward
    children = dict(norm.named_children())
    known = (ours or _is_timms(norm)) and children.keys() == {"drop", "act"}
    return children if known else None


def _is_timms(norm: _BatchNorm) -> bool:
    forward = type(norm).forward
    return f"{forward.__module__}.{forward.__qualname__}" == (
        "timm.layers.norm_act.BatchNormAct2d.forward"
    )


def norm_kind(model: nn.Module) -> str:
    """``"sigbn"`` where a network has SigBN layers, ``"bn"`` otherwise."""
    sigbn = any(isinstance(module, SigmoidBatchNorm) for module in model.modules())
    return "sigbn" if sigbn else "bn"


@torch.no_grad()
def silence(norm: _BatchNorm, channels: Tensor) -> None:
    """Set the effective scale of some channels (a bool mask, shape (C,)) to 0, in place."""
    far_out = -1e4  # where a sigmoid is 0 in every precision
    norm.weight[channels] = far_out if isinstance(norm, SigmoidBatchNorm) else 0.0


def has_scales(module: nn.Module) -> TypeGuard[_BatchNorm]:
    """Whether this is a BatchNorm (SigBN too) that has scales."""
    return isinstance(module, _BatchNorm) and module.affine


def scaled_norms(model: nn.Module) -> Iterator[tuple[str, _BatchNorm]]:
    """Names and layers of every BatchNorm that has scales, in the model's order."""
    return ((name, module) for name, module in model.named_modules() if has_scales(module))


@torch.no_grad()
def scale_sizes(model: nn.Module) -> dict[str, Tensor]:
    """Importance of every channel, the size of its effective scale: layer -> shape (C,)."""
    return {name: scale(module).abs() for name, module in scaled_norms(model)}

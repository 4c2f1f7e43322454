"""The training recipe: parameter groups and learning rates (arXiv 2204.06404, section 4)."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR, OneCycleLR

from rni_pl.norm import SigmoidBatchNorm


@dataclass(frozen=True)
class Recipe:
    """SGD with momentum, and how its learning rate falls.

    Attributes:
        lr: learning rate.
        momentum: with Nesterov acceleration if `nesterov`.
        weight_decay: L2 penalty on every parameter but those of SigBN.
        sigbn_lr_factor: SigBN scales learn this much faster.
        curve: how the learning rate changes, a key of `CURVES`: ``"steps"`` as in the paper,
            ``"cosine"`` down to 0, or ``"onecycle"`` up to `lr` and down again.
        milestones: shares of training after which ``"steps"`` multiplies by `decay`.
        decay: see `milestones`.
    """

    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 1e-4
    sigbn_lr_factor: float = 10.0
    curve: str = "steps"
    milestones: tuple[float, ...] = (0.5, 0.75)
    decay: float = 0.1

    def optimizer(self, model: nn.Module, fused: bool = True) -> torch.optim.Optimizer:
        """SGD over the parameter groups of `model`; `fused`: in one pass, on CPU and GPU alike."""
        return torch.optim.SGD(
            parameter_groups(model, self),
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.nesterov,
            fused=fused,
        )

    def schedule(self, optimizer: torch.optim.Optimizer, total_steps: int) -> LRScheduler:
        """Learning rates by step, so that the curve fits any number of epochs."""
        return CURVES[self.curve](self, optimizer, total_steps)


def _steps(recipe: Recipe, optimizer: torch.optim.Optimizer, total: int) -> LRScheduler:
    return MultiStepLR(
        optimizer, [round(share * total) for share in recipe.milestones], recipe.decay
    )


def _cosine(recipe: Recipe, optimizer: torch.optim.Optimizer, total: int) -> LRScheduler:
    return CosineAnnealingLR(optimizer, total)


def _one_cycle(recipe: Recipe, optimizer: torch.optim.Optimizer, total: int) -> LRScheduler:
    highest = [group["lr"] for group in optimizer.param_groups]
    # The scheduler is stepped once more after the last optimiser step.
    return OneCycleLR(optimizer, highest, total + 1, cycle_momentum=False)


CURVES: dict[str, Callable[[Recipe, torch.optim.Optimizer, int], LRScheduler]] = {
    "steps": _steps,
    "cosine": _cosine,
    "onecycle": _one_cycle,
}


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """All trainable parameters; SigBN scales in a group of their own, without weight decay."""
    scales = {
        id(module.weight) for module in model.modules() if isinstance(module, SigmoidBatchNorm)
    }
    weights = _trainable(model, lambda p: id(p) not in scales)
    groups: list[dict[str, Any]] = [{"name": "weights", "params": weights}]
    if scales:
        sigbn = _trainable(model, lambda p: id(p) in scales)
        lr = recipe.lr * recipe.sigbn_lr_factor
        groups.append({"name": "scales", "params": sigbn, "lr": lr, "weight_decay": 0.0})
    return groups


def _trainable(model: nn.Module, wanted: Any) -> list[nn.Parameter]:
    parameters: Iterable[nn.Parameter] = model.parameters()
    return [p for p in parameters if p.requires_grad and wanted(p)]

"""The training recipe: optimiser, parameter groups and schedule (arXiv 2204.06404, section 4)."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from rni_pl.errors import ConfigError, first_line
from rni_pl.norm import SigmoidBatchNorm
from rni_pl.training.schedulers import multistep

PAPER = partial(SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)
FUSED = (SGD, Adam, AdamW)  # that can do their step in one pass, on CPU and GPU alike


@dataclass(frozen=True)
class Recipe:
    """How a network's parameters are optimised; the defaults are the paper's.

    Attributes:
        optimizer: a partial of an optimiser's class, which takes parameter groups; it has `lr`.
        scheduler: makes a schedule from the optimiser and the number of steps.
        sigbn_lr_factor: SigBN scales learn this much faster, without weight decay.
    """

    optimizer: partial[Any] = PAPER
    scheduler: Callable[[Optimizer, int], LRScheduler] = multistep
    sigbn_lr_factor: float = 10.0

    @property
    def lr(self) -> float:
        """The learning rate of all but SigBN scales."""
        return self.optimizer.keywords["lr"]

    def optimizer_of(self, model: nn.Module, fused: bool = True) -> Optimizer:
        """The optimiser of a network's parameters; `fused`: its step in one pass, if it has one."""
        more = {"fused": fused} if self.optimizer.func in FUSED else {}
        return self.optimizer(parameter_groups(model, self), **more)

    def check(self) -> None:
        """Raise `ConfigError` where optimiser or schedule cannot be made so."""
        try:
            optimizer = self.optimizer([torch.zeros(1, requires_grad=True)])
        except (TypeError, ValueError) as error:
            raise ConfigError(f"optimizer: {first_line(error)}") from error
        try:
            self.scheduler(optimizer, 100)
        except ConfigError:
            raise
        except (TypeError, ValueError) as error:
            raise ConfigError(f"scheduler: {first_line(error)}") from error


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """All trainable parameters; SigBN scales in a group of their own, without weight decay."""
    sigbn = {id(m.weight) for m in model.modules() if isinstance(m, SigmoidBatchNorm)}
    trained = [p for p in model.parameters() if p.requires_grad]
    weights = [p for p in trained if id(p) not in sigbn]
    groups: list[dict[str, Any]] = [{"name": "weights", "params": weights}]
    if sigbn:
        scales = [p for p in trained if id(p) in sigbn]
        lr = recipe.lr * recipe.sigbn_lr_factor
        groups.append({"name": "scales", "params": scales, "lr": lr, "weight_decay": 0.0})
    return groups

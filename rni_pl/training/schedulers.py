"""Learning rates by step, for any number of steps: what the group `scheduler/` chooses from.

One of your own is a function of an optimiser and the number of steps, and a YAML file that names it
with ``_partial_: true``.
"""

from collections.abc import Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR, OneCycleLR

from rni_pl.errors import ConfigError


def multistep(
    optimizer: Optimizer,
    total_steps: int,
    milestones: Sequence[float] = (0.5, 0.75),
    gamma: float = 0.1,
) -> LRScheduler:
    """The rate times `gamma` after each of `milestones`, shares of training (arXiv 2204.06404).

    Raises:
        ConfigError: a milestone is no share in [0, 1], or `gamma` is not above 0.
    """
    if not all(0 <= share <= 1 for share in milestones):
        raise ConfigError(
            f"scheduler.milestones={list(milestones)} is not allowed; allowed: shares in [0, 1]"
        )
    if not gamma > 0:
        raise ConfigError(f"scheduler.gamma={gamma} is not allowed; allowed: a number > 0")
    return MultiStepLR(optimizer, [round(share * total_steps) for share in milestones], gamma)


def cosine(optimizer: Optimizer, total_steps: int) -> LRScheduler:
    """Half a cosine, down to 0."""
    return CosineAnnealingLR(optimizer, total_steps)


def onecycle(optimizer: Optimizer, total_steps: int, pct_start: float = 0.3) -> LRScheduler:
    """Up to the optimiser's rate for the share `pct_start` of training, and down to nearly 0."""
    highest = [group["lr"] for group in optimizer.param_groups]
    # The scheduler is stepped once more after the last optimiser step.
    return OneCycleLR(
        optimizer, highest, total_steps + 1, pct_start=pct_start, cycle_momentum=False
    )

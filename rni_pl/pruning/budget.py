"""The cut that removes a wanted share of channels, parameters or multiply-accumulates."""

from collections.abc import Callable

from torch import Tensor

# The share of the cost that a mask of kept units removes.
Removed = Callable[[Tensor], float]

TARGETS = ("channels", "params", "macs")
TOLERANCE = 0.01


def cut_to_budget(
    cut: Callable[[float], Tensor], removed: Removed, share: float, steps: int
) -> Tensor:
    """The mask of `cut` that removes the share nearest to `share`, and over it by 1 % at most.

    Args:
        cut: gives the mask for a ratio in [0, 1]; a higher ratio never keeps more.
        removed: the share of the cost that a mask removes.
        share: what to remove, in [0, 1).
        steps: ratios are tried in multiples of 1 / steps, by bisection.
    """
    low, high = 0, steps
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if removed(cut(middle / steps)) <= share else (low, middle)
    below, above = cut(low / steps), cut(high / steps)
    over, under = removed(above) - share, share - removed(below)
    return above if over <= min(TOLERANCE, max(under, 0)) else below

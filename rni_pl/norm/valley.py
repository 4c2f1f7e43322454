"""The valley between receded and remaining channels, which polarised scales make visible."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rni_pl.norm import scale_sizes

MAX_DEPTH = 0.25  # of a valley that counts: its density over that of the lower peak
MIN_SHARE = 0.02  # of the channels, on each side of a valley that counts
GRID = 512
FLOOR = 1e-12  # scores below it are alike


@dataclass(frozen=True)
class Valley:
    """The lowest point between two modes of the scores.

    Attributes:
        score: where it lies; channels with higher scores belong to the upper mode.
        depth: its density over that of the lower of the two peaks, in [0, 1].
        share: share of the channels below it.
    """

    score: float
    depth: float
    share: float

    @property
    def divides(self) -> bool:
        """Whether it is deep enough to read a cut from."""
        return self.depth < MAX_DEPTH


def find_valley(scores: Tensor) -> Valley | None:
    """The deepest valley in the density of the logarithms of `scores`, shape (K,), all >= 0.

    The density is a Gaussian kernel estimate with Silverman's bandwidth (Silverman 1986, eq.
    3.31). None where the scores have a single mode.
    """
    x = scores.double().clamp(min=FLOOR).log10()
    width = _bandwidth(x)
    if width == 0:
        return None
    grid = torch.linspace(float(x.min()) - width, float(x.max()) + width, GRID, dtype=x.dtype)
    density = torch.exp(-0.5 * ((grid[:, None] - x) / width) ** 2).sum(1)
    below = (x[None, :] <= grid[:, None]).double().mean(1)
    # At each point: the highest peak to its left and to its right.
    left, right = density.cummax(0).values, density.flip(0).cummax(0).values.flip(0)
    depth = density / torch.minimum(left, right)
    depth[(below < MIN_SHARE) | (below > 1 - MIN_SHARE)] = 1.0
    place = int(depth.argmin())
    if depth[place] >= 1 - 1e-9:
        return None
    return Valley(10 ** float(grid[place]), float(depth[place]), float(below[place]))


def valley_of(model: nn.Module) -> Valley | None:
    """The deepest valley in the importances of all channels of a network, None if there is none.

    It `divides` where the scores have two modes, receded channels and remaining ones.
    """
    sizes = [values.flatten() for values in scale_sizes(model).values()]
    return find_valley(torch.cat(sizes).cpu()) if sizes else None


def _bandwidth(x: Tensor) -> float:
    quarter, three_quarters = torch.quantile(x, torch.tensor([0.25, 0.75], dtype=x.dtype)).tolist()
    spread = min(float(x.std()), (three_quarters - quarter) / 1.34) or float(x.std())
    return 0.9 * spread / math.pow(len(x), 0.2) if len(x) > 1 else 0.0

"""Distributions of importances, read from the checkpoints of training runs."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch

from rni_pl import checkpoint
from rni_pl.errors import CheckpointError
from rni_pl.pruning.valley import Valley, find_valley
from rni_pl.report.collect import Problem
from rni_pl.report.settings import Variant
from rni_pl.report.tables import Table

SMALLEST = 1e-6  # smaller importances share the first bin
BINS_PER_DECADE = 10


@dataclass(frozen=True)
class Distribution:
    """Importances of every channel of a variant's dense networks, of all its runs together.

    Attributes:
        variant: what the networks were trained with.
        sizes: effective scale sizes, shape (channels of all runs,).
        runs: number of runs.
    """

    variant: Variant
    sizes: np.ndarray
    runs: int

    def below(self, limit: float) -> float:
        """Share of the channels below a size."""
        return float((self.sizes < limit).mean())

    @property
    def valley(self) -> Valley | None:
        """Between two modes of the logarithms, if it is deep enough to tell them apart."""
        valley = find_valley(torch.from_numpy(self.sizes))
        return valley if valley and valley.divides else None


def read_distributions(
    table: Table, problems: list[Problem], track: Callable[[Iterable], Iterable] = iter
) -> list[Distribution]:
    """One distribution for each variant with checkpoints of dense networks.

    Checkpoints that cannot be read are added to `problems`.
    """
    found = []
    for row in track([row for row in table.rows if row.ratio is None]):
        parts = []
        for run in row.runs:
            if not (run.path / "checkpoints" / "best.ckpt").is_file():
                continue
            try:
                sizes = checkpoint.read_scale_sizes(run.path)
                parts.append(torch.cat(list(sizes.values())).double().numpy())
            except CheckpointError as error:
                problems.append(Problem(run.name, f"no histogram: {error}"))
        if parts:
            found.append(Distribution(row.variant, np.concatenate(parts), len(parts)))
    return found


def shared_edges(distributions: Iterable[Distribution]) -> np.ndarray:
    """Edges of bins of equal width in the logarithm, that hold the sizes of all `distributions`."""
    sizes = np.concatenate([one.sizes for one in distributions]).clip(SMALLEST)
    low, high = np.floor(np.log10(sizes.min())), np.log10(sizes.max()) + 1e-9
    bins = max(1, int(np.ceil((high - low) * BINS_PER_DECADE)))
    return np.logspace(low, low + bins / BINS_PER_DECADE, bins + 1)


def shares(distribution: Distribution, edges: np.ndarray) -> np.ndarray:
    """Share of the channels in each bin."""
    counts, _ = np.histogram(distribution.sizes.clip(edges[0], edges[-1]), edges)
    return counts / len(distribution.sizes)

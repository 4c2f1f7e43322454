"""Distributions of importances, as the runs of dense networks left them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from rni_pl.errors import CheckpointError, ConfigError
from rni_pl.report.collect import Problem, Run
from rni_pl.report.settings import Variant
from rni_pl.report.tables import Table
from rni_pl.runs import checkpoint
from rni_pl.runs.files import BEST, read_json
from rni_pl.valley import Valley, find_valley

KEPT = "importances.json"  # layer -> importances, where a run was stored without checkpoints
SMALLEST = 1e-6  # smaller importances share the first bin
BINS_PER_DECADE = 10
LIMITS = (0.01, 0.1)  # below them, channels count as receded


@dataclass(frozen=True)
class Importances:
    """Importances of every channel of one dense network or more, shape (channels,)."""

    values: np.ndarray

    def below(self, limit: float) -> float:
        """Share of the channels below a size."""
        return float((self.values < limit).mean())

    @cached_property
    def valley(self) -> Valley | None:
        """The deepest valley in the density of the logarithms, however shallow."""
        return find_valley(torch.from_numpy(self.values))

    @property
    def modes(self) -> str:
        """Whether the importances have two modes, in words."""
        valley = self.valley
        if valley is None:
            return "no valley between two modes"
        depth = f"density {valley.depth:.3f} of the lower peak"
        if valley.divides:
            return f"two modes, valley at {valley.score:.2g} ({depth})"
        return f"no valley between two modes (deepest dip: {depth})"


@dataclass(frozen=True)
class Distribution:
    """Importances of a variant's dense networks.

    Attributes:
        variant: what the networks were trained with.
        parts: each network's, with the run that trained it.
    """

    variant: Variant
    parts: tuple[tuple[Run, Importances], ...]

    @cached_property
    def pooled(self) -> Importances:
        """Those of all networks together."""
        return Importances(np.concatenate([one.values for _, one in self.parts]))


def read_distributions(
    table: Table, problems: list[Problem], track: Callable[[Iterable], Iterable] = iter
) -> list[Distribution]:
    """One distribution for each variant whose dense networks are at hand.

    Files that cannot be read are added to `problems`.
    """
    found = []
    for row in track([row for row in table.rows if row.ratio is None]):
        parts = []
        for run in row.runs:
            try:
                values = _read(run.path)
            except (CheckpointError, ConfigError) as error:
                problems.append(Problem(run.name, f"no histogram: {error}"))
                continue
            if values is not None:
                parts.append((run, Importances(values)))
        if parts:
            found.append(Distribution(row.variant, tuple(parts)))
    return found


def _read(path: Path) -> np.ndarray | None:
    """From the checkpoint of the best epoch, or else from what was kept of it."""
    if (path / BEST).is_file():
        sizes = checkpoint.read_scale_sizes(path)
        return torch.cat(list(sizes.values())).double().numpy()
    if not (path / KEPT).is_file():
        return None
    try:
        layers = [np.asarray(values, dtype=float) for values in read_json(path / KEPT).values()]
        values = np.concatenate(layers)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path / KEPT} is damaged") from error
    if values.ndim != 1 or not (np.isfinite(values) & (values >= 0)).all():
        raise ConfigError(f"{path / KEPT} is damaged")
    return values


def shared_edges(distributions: Iterable[Distribution]) -> np.ndarray:
    """Edges of bins of equal width in the logarithm, that hold the sizes of all `distributions`."""
    sizes = np.concatenate([one.pooled.values for one in distributions]).clip(SMALLEST)
    low, high = np.floor(np.log10(sizes.min())), np.log10(sizes.max()) + 1e-9
    bins = max(1, int(np.ceil((high - low) * BINS_PER_DECADE)))
    return np.logspace(low, low + bins / BINS_PER_DECADE, bins + 1)


def shares(distribution: Distribution, edges: np.ndarray) -> np.ndarray:
    """Share of the channels in each bin."""
    values = distribution.pooled.values
    counts, _ = np.histogram(values.clip(edges[0], edges[-1]), edges)
    return counts / len(values)

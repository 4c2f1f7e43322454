"""Figures that others report, from `published.yaml`, to be shown beside ours."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from rni_pl.report.budgets import Budget


@dataclass(frozen=True)
class Published:
    """What one source reports of one network on one data set.

    Attributes:
        name: what its row is called.
        source: where the figures come from.
        dataset: the data set they were measured on.
        beside: further data sets that they are shown beside.
        arch: the network.
        budget: the epochs that it took.
        accuracies: method -> ratio (None: dense) -> test accuracy in percent.
    """

    name: str
    source: str
    dataset: str
    beside: tuple[str, ...]
    arch: str
    budget: Budget
    accuracies: dict[str, dict[float | None, float]]


@cache
def published() -> tuple[Published, ...]:
    """Everything that others report."""
    contents = yaml.safe_load((Path(__file__).parent / "published.yaml").read_text("utf-8"))
    ratios = [None, *contents["ratios"]]
    return tuple(
        Published(
            name=entry["name"],
            source=entry["source"],
            dataset=entry["dataset"],
            beside=tuple(entry.get("beside", ())),
            arch=entry["arch"],
            budget=Budget(entry["epochs"][0], entry["epochs"][1], is_tuned=True),
            accuracies={
                method: dict(zip(ratios, figures, strict=True))
                for method, figures in entry["accuracies"].items()
            },
        )
        for entry in contents["sources"]
    )


def beside(dataset: str, arch: str) -> list[Published]:
    """What is reported of a network on a data set, or on one that it is shown beside."""
    return [
        one for one in published() if one.arch == arch and dataset in (one.dataset, *one.beside)
    ]

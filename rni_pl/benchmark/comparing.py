"""The command: time pruned networks beside the dense one, and print what was found."""

import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import product, zip_longest
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rni_pl.benchmark.engines import Setup
from rni_pl.benchmark.networks import Family, as_list, families
from rni_pl.benchmark.speed import seconds_a_batch
from rni_pl.config import plain
from rni_pl.errors import BenchmarkError, first_line
from rni_pl.progress import busy
from rni_pl.runs import files
from rni_pl.runs.spec import ModelSpec


@dataclass(frozen=True)
class Row:
    """Figures of one network on one engine.

    `arguments` are those of the network's builder, `norm` is ``"bn"`` or ``"sigbn"``, `image_size`
    height and width: with `arch` and `classes`, what tells the networks of one table from those of
    another. `milliseconds` is the median latency of a batch. `speedup` and `mac_reduction` are
    factors against the dense network; `efficiency` is `speedup / mac_reduction`.
    """

    arch: str
    arguments: dict[str, Any]
    norm: str
    classes: int
    image_size: list[int]
    network: str
    engine: str
    batch: int
    threads: int
    milliseconds: float
    images_per_second: float
    speedup: float
    mac_reduction: float
    efficiency: float


def run(config: DictConfig) -> None:
    """Measure as configured, print a table for each architecture, write the figures if asked to.

    Raises:
        RniError: a checkpoint cannot be used as asked, or no engine can run here.
    """
    settings = plain(config)
    if settings["json"] is not None and not Path(settings["json"]).parent.is_dir():
        raise BenchmarkError(f"json={settings['json']} cannot be written: there is no such folder")
    with busy("loading") as announce:
        tables = [list(measure(family, settings, announce)) for family in families(config)]
    if not any(tables):
        raise BenchmarkError(f"engines={settings['engines']}: none of them can run here")
    for rows in filter(None, tables):
        Console().print(table(rows))
    if settings["json"] is not None:
        figures = [asdict(row) for rows in tables for row in rows]
        with files.whole(Path(settings["json"])) as temporary:
            temporary.write_text(json.dumps(figures, indent=2) + "\n")


def measure(
    family: Family, settings: dict[str, Any], announce: Callable[[str], None]
) -> Iterator[Row]:
    """Figures for every engine and batch size; with a warning where an engine cannot run here."""
    networks = [family.dense, *family.pruned]
    threads = settings["threads"] or torch.get_num_threads()
    described = _described(family.spec)
    for engine, batch in product(as_list(settings["engines"]), as_list(settings["batch"])):
        announce(f"{family.spec.arch_name}: {engine}, batch {batch}")
        setup = Setup(engine, batch, threads, settings["align"], settings["repeats"])
        try:
            models = [network.model for network in networks]
            found = seconds_a_batch(models, family.spec.image_shape, setup)
        except Exception as error:  # each fails in its own way: no compiler, too little memory
            warnings.warn(f"{engine}, batch {batch}: {_named(error)}", stacklevel=2)
            continue
        for network, seconds in zip(networks, found, strict=True):
            speedup, reduction = found[0] / seconds, family.dense.macs / network.macs
            yield Row(
                **described,
                network=network.name,
                engine=engine,
                batch=batch,
                threads=threads,
                milliseconds=1000 * seconds,
                images_per_second=batch / seconds,
                speedup=speedup,
                mac_reduction=reduction,
                efficiency=speedup / reduction,
            )


def _described(spec: ModelSpec) -> dict[str, Any]:
    """What the rows say of a family."""
    return {
        "arch": spec.arch_name,
        "arguments": {key: value for key, value in spec.arch.items() if key != "_target_"},
        "norm": spec.norm,
        "classes": spec.num_classes,
        "image_size": spec.image_shape[1:],
    }


def _named(error: Exception) -> str:
    """An error's class and first line; many say little without their class."""
    name, said = type(error).__name__, first_line(error)
    return said if said == name else f"{name}: {said}"


def table(rows: list[Row]) -> Table:
    """Latency, throughput and speed-up beside the MAC reduction."""
    one = rows[0]
    arguments = [f"{key}={value}" for key, value in one.arguments.items()]
    size = " x ".join(map(str, one.image_size))
    about = ", ".join([*arguments, one.norm, f"{one.classes} classes", size])
    # Text, since arguments may have brackets, which are markup elsewhere.
    title = Text(f"{one.arch} ({about}), {one.threads} threads")
    shown = Table("network", "engine", title=title)
    for column in ("batch", "ms", "images/s", "speed-up", "MACs", "speed-up / MACs"):
        shown.add_column(column, justify="right")
    for row, after in zip_longest(rows, rows[1:]):
        shown.add_row(
            row.network,
            row.engine,
            str(row.batch),
            f"{row.milliseconds:.3g}",
            f"{row.images_per_second:,.0f}",
            f"{row.speedup:.2f}x",
            f"{row.mac_reduction:.2f}x",
            f"{row.efficiency:.2f}",
            end_section=after is not None and after.network == "dense",
        )
    return shown

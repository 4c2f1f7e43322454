"""The command: time pruned networks beside the dense one, and print what was found."""

import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rni_pl.config import plain
from rni_pl.cost import macs
from rni_pl.errors import BenchmarkError, first_line
from rni_pl.latency.engines import engine_of
from rni_pl.latency.networks import Family, as_list, families
from rni_pl.latency.timing import seconds_a_batch
from rni_pl.progress import busy
from rni_pl.runs import files


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
    spec, networks = family.spec, {"dense": family.dense, **family.pruned}
    arguments = {key: value for key, value in spec.arch.items() if key != "_target_"}
    costs = [macs(model, spec.image_shape) for model in networks.values()]
    threads = settings["threads"] or torch.get_num_threads()
    for name, batch in product(as_list(settings["engines"]), as_list(settings["batch"])):
        announce(f"{spec.arch_name}: {name}, batch {batch}")
        engine = engine_of(name, settings["align"])
        given = (batch, engine, threads, settings["repeats"])
        try:
            times = seconds_a_batch(list(networks.values()), spec.image_shape, *given)
        except Exception as error:  # each fails in its own way: no compiler, too little memory
            kind, said = type(error).__name__, first_line(error)
            why = said if said == kind else f"{kind}: {said}"  # many say little without it
            warnings.warn(f"{name}, batch {batch}: {why}", stacklevel=2)
            continue
        for network, seconds, cost in zip(networks, times, costs, strict=True):
            speedup, reduction = times[0] / seconds, costs[0] / cost
            yield Row(
                spec.arch_name, arguments, spec.norm, spec.num_classes, spec.image_shape[1:],
                network, name, batch, threads, milliseconds=1000 * seconds,
                images_per_second=batch / seconds, speedup=speedup, mac_reduction=reduction,
                efficiency=speedup / reduction,
            )  # fmt: skip


def table(rows: list[Row]) -> Table:
    """Latency, throughput and speed-up beside the MAC reduction."""
    one = rows[0]
    arguments = [f"{key}={value}" for key, value in one.arguments.items()]
    size = " x ".join(map(str, one.image_size))
    about = ", ".join([*arguments, one.norm, f"{one.classes} classes", size])
    # Text, since arguments may have brackets, which are markup elsewhere.
    shown = Table("network", "engine", title=Text(f"{one.arch} ({about}), {one.threads} threads"))
    for column in ("batch", "ms", "images/s", "speed-up", "MACs", "speed-up / MACs"):
        shown.add_column(column, justify="right")
    for row in rows:
        if row.network == "dense":
            shown.add_section()
        shown.add_row(
            row.network, row.engine, str(row.batch), f"{row.milliseconds:.3g}",
            f"{row.images_per_second:,.0f}", f"{row.speedup:.2f}x", f"{row.mac_reduction:.2f}x",
            f"{row.efficiency:.2f}",
        )  # fmt: skip
    return shown

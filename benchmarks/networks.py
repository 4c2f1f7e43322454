"""Tries pruning on every network of `zoo` and of `suites`, and prints docs/networks.md.

    pip install -e ".[timm]" && python benchmarks/networks.py --results networks.json > networks.md
    pip install ultralytics && python benchmarks/networks.py --suite yolo

Without `--suite` the networks of `zoo`: classifiers of torchvision, of timm and our own. Eight
requests for each: ratios 0.5 and 0.9, global and local, residual streams left whole and pruned too
(coupled). After each, on random scales and small images: does the pruned network compute what the
unpruned one computes with the removed channels' scale and bias at 0, take a training step, come
back from a checkpoint the same; and, after all of them for torchvision's networks and ours and
after the first and the last for timm's, does torch.export give a program that computes the same.
With `--suite` the networks of other packages (`suites`), one request for each. What is in the file
of results already is not measured again; the page shows all that is in it.
"""

import argparse
import copy
import json
import logging
import re
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from itertools import islice, product
from pathlib import Path
from typing import Any

import suites
import torch
import trying
import zoo
from torch import nn
from torch.nn import functional as F

from rni_pl.cost import macs, parameter_count
from rni_pl.norm import silence
from rni_pl.pruning import PruningReport, prune

REQUESTS = list(product((False, True), (0.5, 0.9), ("global", "local")))

HEAD = """# Networks tried

What `python benchmarks/networks.py` measured: eight requests for each network (ratios 0.5 and 0.9,
global and local, `prune.coupled` false and true), with random scales, on small images.

- **M params**, **M MACs**: dense, then at ratio 0.5, globally, with `coupled` false and true. They
  are for images of the size given.
- **prunable**: channels that may go, of all that have a scale, with `coupled` false and true.
- **holds**: all of these held: the pruned network computes what the unpruned one computes with the
  removed channels' scale and bias at 0 (to 1e-5 of the largest output, in float64); it takes a
  training step; it comes back from a checkpoint with the same outputs, bit for bit; `torch.export`
  gives a program that computes the same (after all eight requests for torchvision's networks and
  ours, after two for timm's). A cell says what did not hold.
- **left whole**: norm layers that no channel can go from even with `coupled` true, and why.
"""
SUITES_HEAD = """
## Networks of other packages

One request for each: half of the channels, globally, `coupled` true; random scales, small images
or volumes. `python benchmarks/networks.py` with `--suite` and a name of the first column, once
the package is installed with pip; nothing of rni_pl needs one of them.

| `--suite` | networks | package |
|---|---|---|
"""
SUITES_TAIL = """
- **share**: of the BatchNorm channels of the whole network, those that may go.
- **equal**: how far the outputs are from those of the network with the removed channels' scale and
  bias at 0, relative to the largest, in float64. "verify" stands where outputs are sorted by
  score, so that the last digit decides on their order: `prune` itself has compared them.
- **holds**: the parameters of the pruned network have gradients where those of the dense one do, in
  one step of training (detectors with a target for each image); a network built anew takes its
  sizes (`structure_of`, `resize`) and weights, and gives the same outputs, bit for bit.
"""
SUITE_COLUMNS = ("network", "input", "M params", "share", "equal", "holds", "left whole")
COLUMNS = (
    "network", "image", "M params", "M MACs", "prunable", "holds", "left whole with coupled"
)  # fmt: skip


def equal(
    entry: zoo.Entry, model: nn.Module, pruned: nn.Module, report: PruningReport, x: Any
) -> bool:
    """Whether the pruned network computes what the unpruned one does with removed scales at 0."""
    masked = copy.deepcopy(model)
    for name, kept in report.kept.items():
        norm: Any = masked.get_submodule(name)
        gone = torch.ones(norm.num_features, dtype=torch.bool)
        gone[kept] = False
        silence(norm, gone)
        with torch.no_grad():
            norm.bias[gone] = 0.0
    return _close(pruned.double(), masked.double(), x.double())


def trains(
    entry: zoo.Entry, model: nn.Module, pruned: nn.Module, report: PruningReport, x: Any
) -> bool:
    """Whether a step gives every parameter a gradient."""
    optimizer = torch.optim.SGD(pruned.train().parameters(), lr=0.1)
    F.cross_entropy(pruned(x), torch.arange(len(x))).backward()
    optimizer.step()
    trainable = [p for p in pruned.parameters() if p.requires_grad]
    return all(p.grad is not None and p.grad.shape == p.shape for p in trainable)


def reloads(
    entry: zoo.Entry, model: nn.Module, pruned: nn.Module, report: PruningReport, x: Any
) -> bool:
    """Whether `load_model` gives the same network."""
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        loaded = zoo.through_checkpoint(entry.spec, pruned, Path(folder) / "pruned.ckpt")
        return torch.equal(loaded(x), pruned(x))


def exports(
    entry: zoo.Entry, model: nn.Module, pruned: nn.Module, report: PruningReport, x: Any
) -> bool:
    """Whether the exported program computes the same."""
    return _close(torch.export.export(pruned, (x,)).module(), pruned, x, 1e-4)


@torch.no_grad()
def _close(a: nn.Module, b: nn.Module, x: torch.Tensor, tolerance: float = 1e-5) -> bool:
    found, expected = a(x), b(x)
    return float((found - expected).abs().max() / expected.abs().max()) < tolerance


CHECKS = (equal, trains, reloads, exports)


def measure(entry: zoo.Entry) -> dict[str, Any]:
    """What the engine makes of one network, in plain values."""
    model, x = entry.build(), entry.images()
    shape = entry.spec.image_shape
    row: dict[str, Any] = {"size": entry.size, "failed": [], "skipped": {}}
    row["params"], row["macs"] = [parameter_count(model)], [macs(model, shape)]
    row["channels"] = [sum(n.num_features for _, n in zoo.scaled_norms(model))]
    for i, (coupled, ratio, scope) in enumerate(REQUESTS):
        request = f"{ratio} {scope}{' coupled' if coupled else ''}"
        try:
            pruned, report = prune(model, x, ratio, scope, coupled=coupled)
        except ValueError as error:
            row["failed"].append(f"{request}: {error}")
            continue
        if (ratio, scope) == (0.5, "global"):
            row["params"].append(parameter_count(pruned))
            row["macs"].append(macs(pruned, shape))
            row["channels"].append(report.channels_dense)
            row["skipped"] = report.skipped
        export = "timm" not in entry.target or i in (0, len(REQUESTS) - 1)
        for check in CHECKS[: 4 if export else 3]:
            fault = _try(check, entry, model, copy.deepcopy(pruned), report, x)
            if fault:
                row["failed"].append(f"{request}: {fault}")
    return row


def _try(check: Callable[..., bool], *given: Any) -> str:
    """What is wrong, or nothing."""
    try:
        return "" if check(*given) else f"{check.__name__}: no"
    except Exception as error:  # whatever goes wrong belongs in the table
        return f"{check.__name__}: {type(error).__name__}: {str(error).splitlines()[0][:80]}"


def line(name: str, row: dict[str, Any]) -> str:
    """One row of the table."""
    cells = [name, str(row["size"])]
    for figures in (row["params"], row["macs"]):
        cells.append(" → ".join(f"{figure / 1e6:.3g}" for figure in figures))
    dense, *prunable = row["channels"]
    cells.append(", ".join(f"{channels / dense:.0%}" for channels in prunable))
    cells.append("; ".join(dict.fromkeys(row["failed"])).replace("|", "/") or "all")
    reasons = Counter(_without_names(why) for why in row["skipped"].values())
    cells.append("; ".join(f"{why} ({count})" for why, count in reasons.items()) or "none")
    return "| " + " | ".join(cells) + " |"


def _without_names(reason: str) -> str:
    """A reason as many layers share it: names of layers, sizes and shapes left out."""
    reason = re.sub(r" in (\S+\.)*\S+(?=$|,| does)", "", reason)
    reason = re.sub(r"\b(?!\w+\.py:)[a-z_]+[0-9]*(\.\w+)+\b", "a layer", reason)
    return re.sub(r"(does not fit fewer channels|cannot be followed) \(.*\)$", r"\1", reason)


def main() -> None:
    """Measure what has not been measured yet, and print the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=Path("networks.json"))
    parser.add_argument("--most", type=int, help="measure this many networks at most")
    parser.add_argument("--suite", nargs="+", choices=suites.SUITES, default=[], metavar="NAME")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    file = arguments.results
    rows = json.loads(file.read_text()) if file.exists() else {}
    for key, task in islice(_todo(arguments.suite, rows), arguments.most):
        rows[key] = task()
        file.write_text(json.dumps(rows, indent=1))
        print(key, *rows[key]["failed"], file=sys.stderr, flush=True)
    print("\n".join(page(rows)))


def _todo(
    chosen: list[str], rows: dict[str, Any]
) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """What is not measured yet: its key in the results, and what measures it."""
    if not chosen:
        for entry in zoo.EVERYTHING:
            if _key(entry) not in rows:
                yield _key(entry), partial(measure, entry)
    for suite in chosen:
        for subject in suites.SUITES[suite].subjects():
            if f"{suite}/{subject.name}" not in rows:
                yield f"{suite}/{subject.name}", partial(_attempt, subject)


def _attempt(subject: suites.Subject) -> dict[str, Any]:
    return asdict(trying.attempt(subject))


def page(rows: dict[str, Any]) -> Iterator[str]:
    """The lines of docs/networks.md, of all that was measured."""
    yield from (HEAD, *_head(COLUMNS))
    yield from (line(_key(e), rows[_key(e)]) for e in zoo.EVERYTHING if _key(e) in rows)
    found = {
        name: {key.partition("/")[2]: row for key, row in rows.items() if key.split("/")[0] == name}
        for name in suites.SUITES
    }
    if not any(found.values()):
        return
    listed = [f"| `{n}` | {s.title} | {s.package} |" for n, s in suites.SUITES.items()]
    yield SUITES_HEAD + "\n".join(listed) + "\n" + SUITES_TAIL.rstrip()
    for name, measured in found.items():
        if measured:
            yield from (f"\n### {suites.SUITES[name].title}\n", *_head(SUITE_COLUMNS))
            for key, row in measured.items():
                yield "| " + " | ".join(trying.cells(key, row, _without_names)) + " |"
            mean = sum(row["share"] for row in measured.values()) / len(measured)
            yield f"| **mean of {len(measured)}** | | | **{mean:.0%}** | | | |"


def _head(columns: Sequence[str]) -> tuple[str, str]:
    return "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)


def _key(entry: zoo.Entry) -> str:
    home = entry.target.partition(".")[0]
    return entry.name if home == "rni_pl" else f"{home} {entry.name}"


if __name__ == "__main__":
    main()

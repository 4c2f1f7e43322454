"""Run directories made up for the tests of the report, and reading what the report shows."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import torch
import yaml

from rni_pl.report.__main__ import main

TRAIN: dict[str, Any] = {
    "dataset": "digits", "arch": "resnet20", "method": "rni", "test_acc": 0.9, "best_epoch": 1,
    "epochs": 2, "params": 269034, "macs": 40813184, "seconds": 1.5, "images_per_second": 99.0,
    "seed": 0,
}  # fmt: skip
PRUNE: dict[str, Any] = {
    "dataset": "digits", "arch": "resnet20", "method": "rni", "ratio": 0.5, "scope": "global",
    "target": "channels", "acc_dense": 0.9, "acc_pruned": 0.41, "acc_finetuned": 0.8765,
    "params_dense": 269034, "params_pruned": 134517, "macs_dense": 40813184,
    "macs_pruned": 20406593, "channels_dense": 48, "channels_pruned": 24,
    "kept": {"layer1.bn1": 4, "layer2.bn1": 20}, "widths": {"layer1.bn1": 16, "layer2.bn1": 32},
    "seed": 0,
}  # fmt: skip


def put(path: Path, summary: dict | None, config: dict | None = None) -> Path:
    """A run directory as a run leaves it."""
    path.mkdir(parents=True)
    if summary is not None:
        (path / "summary.json").write_text(json.dumps(summary))
    if config is not None:
        (path / "config.yaml").write_text(yaml.safe_dump(config))
    return path


def trained_run(path: Path, weight: float = 1e-4, **summary: Any) -> Path:
    config = {"command": "train", "seed": summary.get("seed", 0), "method": {"reg_weight": weight}}
    return put(path, {**TRAIN, **summary}, config)


def pruned_run(path: Path, parent: Path, lr: float = 0.1, **summary: Any) -> Path:
    config = {
        "command": "prune",
        "seed": summary.get("seed", 0),
        "checkpoint": str(parent),
        "optimizer": {"lr": lr},
        "prune": {"ratio": summary.get("ratio", 0.5), "scope": None},
    }
    return put(path, {**PRUNE, **summary}, config)


def report(*directories: Path) -> str:
    """Run the command; the text of the page."""
    main([*map(str, directories), "--output", str(directories[0])])
    return (directories[0] / "report.html").read_text()


class Cells(HTMLParser):
    """The rows of all tables of a page, as text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self._inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self._inside = True

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.rows[-1][-1] += data


def save_checkpoint(run: Path, kind: str, gammas: dict[str, torch.Tensor]) -> None:
    state = {f"model.{name}.weight": gamma for name, gamma in gammas.items()}
    state |= {f"model.{name}.running_mean": torch.zeros(len(g)) for name, g in gammas.items()}
    state["model.fc.weight"] = torch.zeros(3)
    (run / "checkpoints").mkdir()
    contents = {
        "hyper_parameters": {"spec": {"norm": kind}},
        "state_dict": state,
        "scaled": list(gammas),
    }
    torch.save(contents, run / "checkpoints" / "best.ckpt")

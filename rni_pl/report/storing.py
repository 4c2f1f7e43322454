"""Keeping what a report needs of runs, without checkpoints and without paths of the machine."""

import json
from pathlib import Path
from typing import Any

import yaml

from rni_pl import checkpoint
from rni_pl.errors import ConfigError
from rni_pl.files import BEST, CONFIG, SUMMARY, write_json, write_whole
from rni_pl.report.collect import Found, Run
from rni_pl.report.importances import KEPT

DIGITS = 5  # of an importance that are kept
PATHS = ("checkpoint", "init")


def store(found: Found, folder: Path) -> list[Path]:
    """Copy summary, settings and importances of every run below `folder`; the directories made.

    Raises:
        ConfigError: two runs would have the same directory, or a run is stored upon itself.
        CheckpointError: a checkpoint of a dense network is damaged.
    """
    places: dict[Path, Run] = {}
    for run in found.runs:
        place = folder / _name(run)
        if place in places:
            raise ConfigError(f"{places[place].path} and {run.path} would both become {place}")
        if place.resolve() == run.path.resolve():
            raise ConfigError(f"{run.path} would be stored upon itself")
        places[place] = run
    for place, run in places.items():
        _store(run, place)
    return list(places)


def _name(run: Run) -> Path:
    """Its name below the directory that was searched; for that directory itself, its own."""
    name = Path(run.name)
    return Path(run.path.resolve().name) if name.is_absolute() or ".." in name.parts else name


def _store(run: Run, place: Path) -> None:
    place.mkdir(parents=True, exist_ok=True)
    write_json(run.summary, place / SUMMARY)
    if run.settings is not None:
        config = yaml.safe_load((run.path / CONFIG).read_text(encoding="utf-8"))
        write_whole(place / CONFIG, yaml.safe_dump(_portable(config), sort_keys=False))
    if not run.is_pruned and (run.path / BEST).is_file():
        sizes = checkpoint.read_scale_sizes(run.path)
        kept = {
            name: [float(f"{value:.{DIGITS}g}") for value in values.tolist()]
            for name, values in sizes.items()
        }
        lines = [f"{json.dumps(name)}: {json.dumps(values)}" for name, values in kept.items()]
        write_whole(place / KEPT, "{" + ",\n".join(lines) + "}\n")


def _portable(config: dict[str, Any]) -> dict[str, Any]:
    """Settings without what only held on one machine; of a path, what names the run."""
    left = {key: value for key, value in config.items() if key not in ("overrides", "resume")}
    if isinstance(left.get("data"), dict):
        left["data"] = {key: value for key, value in left["data"].items() if key != "root"}
    for key in PATHS:
        if isinstance(left.get(key), str):
            path = Path(left[key])
            left[key] = str(Path(*path.parts[-3:])) if path.suffix == ".ckpt" else path.name
    return left

"""Keeping what a report needs of runs, without checkpoints and without paths of the machine."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from rni_pl.errors import ConfigError
from rni_pl.report.collect import Found, Run
from rni_pl.report.importances import KEPT
from rni_pl.runs import checkpoint
from rni_pl.runs.files import BEST, CONFIG, SUMMARY, write_json, write_whole

DIGITS = 5  # of an importance that are kept
PATHS = ("checkpoint", "init")
ROOT = "data.root"  # is left out where all runs have the same
OF_FILE = 3  # parts that name a run and its checkpoint: run/checkpoints/best.ckpt


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
        _store(run, place, found.runs)
    return list(places)


def _name(run: Run) -> Path:
    """Its name below the directory that was searched; for that directory itself, its own."""
    name = Path(run.name)
    return Path(run.path.resolve().name) if name.is_absolute() or ".." in name.parts else name


def _store(run: Run, place: Path, runs: Iterable[Run]) -> None:
    place.mkdir(parents=True, exist_ok=True)
    write_json(run.summary, place / SUMMARY)
    if run.settings is not None:
        config = yaml.safe_load((run.path / CONFIG).read_text(encoding="utf-8"))
        kept = _portable(config, _values(run, runs))
        write_whole(place / CONFIG, yaml.safe_dump(kept, sort_keys=False))
    if not run.is_pruned and (run.path / BEST).is_file():
        sizes = checkpoint.read_scale_sizes(run.path)
        digits = {
            name: [float(f"{value:.{DIGITS}g}") for value in values.tolist()]
            for name, values in sizes.items()
        }
        lines = [f"{json.dumps(name)}: {json.dumps(values)}" for name, values in digits.items()]
        write_whole(place / KEPT, "{" + ",\n".join(lines) + "}\n")


def _values(run: Run, runs: Iterable[Run]) -> dict[str, set[Any]]:
    """What the settings that are paths are, in the runs that a report may average with `run`."""
    alike = [
        other.settings
        for other in runs
        if other.settings is not None
        and all(other.summary[key] == run.summary[key] for key in ("dataset", "arch"))
    ]
    return {key: {one[key] for one in alike if key in one} for key in (ROOT, *PATHS)}


def _portable(config: dict[str, Any], values: dict[str, set[Any]]) -> dict[str, Any]:
    """Settings without what only held on one machine; of a path, what tells it from `values`."""
    left = {key: value for key, value in config.items() if key not in ("overrides", "resume")}
    if isinstance(left.get("data"), dict):
        left["data"] = {
            key: _end(value, values[ROOT]) if key == "root" else value
            for key, value in left["data"].items()
            if key != "root" or len(values[ROOT]) > 1
        }
    return {key: _end(value, values[key]) if key in PATHS else value for key, value in left.items()}


def _end(given: Any, others: Iterable[Any]) -> Any:
    """The last parts of a path: as few as name the run, and as tell it from other paths."""
    if not isinstance(given, str):
        return given
    path = Path(given)
    unlike = {Path(other).parts for other in others if isinstance(other, str)} - {path.parts}
    for count in range(OF_FILE if path.suffix == ".ckpt" else 1, len(path.parts)):
        end = path.parts[-count:]
        if end not in {parts[-count:] for parts in unlike}:
            return str(Path(*end))
    return str(path)

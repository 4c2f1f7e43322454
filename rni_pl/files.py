"""Writing and reading the small files of a run directory."""

import json
import os
from pathlib import Path
from typing import Any

from rni_pl.errors import ConfigError


def write_json(figures: dict[str, Any], file: Path) -> None:
    """Write figures of a run."""
    write_whole(file, json.dumps(figures, indent=2) + "\n")


def read_json(file: Path) -> dict[str, Any]:
    """Read figures of a run that goes on."""
    try:
        figures = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} is missing or damaged: the run cannot go on") from error
    if not isinstance(figures, dict):
        raise ConfigError(f"{file} is damaged: the run cannot go on")
    return figures


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)

"""Writing files whole or not at all, and reading the small ones of a run directory."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
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
    """Write a text whole or not at all."""
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, which takes its place where the block ends without error.

    Otherwise the temporary file is removed and `path` is left as it was. The suffix is the same.
    """
    temporary = path.with_name(f".{path.stem}.tmp{path.suffix}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)

"""Writes configuration.md from the files in conf/: `python docs/configuration.py`."""

import re
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

DOCS = Path(__file__).resolve().parent
CONF = DOCS.parent / "conf"
COMMANDS = {
    "train": "python train.py",
    "prune": "python prune.py",
    "export": "python -m rni_pl.export",
    "benchmark": "python -m rni_pl.benchmark",
    "sensitivity": "python -m rni_pl.sensitivity",
}
HIDDEN = {"defaults", "hydra"}  # how files are put together, and where Hydra writes
ENTRY = re.compile(r"(?P<indent> *)(?P<key>\w+):(?: +(?P<value>[^#\s].*?))?(?: +# (?P<note>.*))?$")


class Setting(NamedTuple):
    """One line of a configuration file."""

    key: str
    value: str
    note: str


def settings(text: str) -> Iterator[Setting]:
    """The values of a file with their comments; keys as the command line has them."""
    path: list[tuple[int, str]] = []
    for line in text.splitlines():
        entry = ENTRY.match(line)
        if entry is None:
            continue
        indent = len(entry["indent"])
        path = [above for above in path if above[0] < indent]
        path.append((indent, entry["key"]))
        value, note = entry["value"] or "", entry["note"] or ""
        if path[0][1] not in HIDDEN and (value or note):
            yield Setting(".".join(key for _, key in path), value, note)


def heading(text: str) -> str:
    """The comments at the top of a file."""
    top = takewhile(lambda line: line.startswith("#"), text.splitlines())
    return " ".join(line.removeprefix("#").strip() for line in top if "@package" not in line)


def table(found: list[Setting], prefix: str = "") -> Iterator[str]:
    """Settings as Markdown."""
    yield "| setting | default | |"
    yield "|---|---|---|"
    for key, value, note in found:
        yield f"| `{prefix}{key}` | {_code(value)} | {note} |".replace("  |", " |")
    yield ""


def _code(value: str) -> str:
    if value == "???":
        return "must be given"
    return f"`{value}`" if value else ""


def _first_upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def command_page(name: str) -> Iterator[str]:
    """What one command takes besides its groups."""
    text = (CONF / f"{name}.yaml").read_text()
    yield from (f"## `{COMMANDS[name]}`", "", _first_upper(heading(text).partition(": ")[2]), "")
    chosen = re.findall(r"^  - (?:optional )?(\w+): *([\w${}]+)", text, re.MULTILINE)
    if chosen:
        names = (f"`{group}={choice}`" for group, choice in chosen if "$" not in choice)
        yield from (f"Groups and their defaults: {', '.join(names)}.", "")
    yield from table(list(settings(text)))


def group_page(group: Path) -> Iterator[str]:
    """The choices of one group."""
    yield from (f"## `{group.name}=`", "")
    texts = {file.stem: file.read_text() for file in sorted(group.glob("*.yaml"))}
    # The files of these set values of other groups.
    whole = group.name in ("experiment", "protocol", "debug")
    prefix = "" if whole else f"{group.name}."
    for name, text in texts.items():
        found = list(settings(text))
        target = "".join(s.value for s in found if s.key == "_target_")
        builds = f" `{target}`" if target not in ("", "???", "null") else ""
        yield f"- **{name}**{builds} {heading(text)}".rstrip()
        values = [s for s in found if s.key not in ("_target_", "choice", "source")]
        if values:
            yield from ("", *table(values, prefix))
    yield ""


def page() -> str:
    """The whole page."""
    lines = [
        "# Configuration",
        "",
        "Written from `conf/` by `python docs/configuration.py`: change the files there, not this",
        "page. Settings are given as `setting=value`, a choice of a group as `group=choice`;",
        "`python train.py --cfg job` prints what would be used.",
        "",
    ]
    for name in COMMANDS:
        lines += command_page(name)
    for group in sorted(path for path in CONF.iterdir() if path.is_dir()):
        lines += group_page(group)
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    (DOCS / "configuration.md").write_text(page())

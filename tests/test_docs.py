"""Every command and every piece of code on the pages runs; see `shown.py` for how it is cut short.

A ``text`` block is what the command or the code above it prints, but for the figures; a block whose
first line is a comment with the name of a file goes into that file.

A page is worked through from top to bottom in a directory of its own, so that what a command writes
is there for the next. Where it starts there is what a reader has by then: `runs/digits` and
`runs/digits_half` of the README, and a folder of images under each name in capitals.
"""

import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, run_python
from reader import (
    IN_CI,
    MY_PACKAGE,
    Reader,
    elsewhere,
    make_images,
    program,
)
from shown import (
    BENCHMARKS,
    LANGUAGES,
    PAGES,
    Shown,
    composed,
    shown_in,
)

from rni_pl.models import resnet20

PAGE_NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
EVERYTHING = [shown for page in PAGES for shown in shown_in(page)]
COMMANDS = [shown for shown in EVERYTHING if shown.language == "bash"]

INSTALL = re.compile(r"pip install (?:--quiet )?(?:-e )?\"?(?:\.|rni_pl)(?:\[([\w,]+)\])?\"?")
SETTINGS = {
    "train",
    "prune",
    "export",
    "benchmark",
    "sensitivity",
}  # commands that are given settings


def slow(name: str) -> Any:
    return pytest.param(name, marks=pytest.mark.slow)


@pytest.fixture
def reader(
    trained: Path, pruned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A directory with what a reader has before a page; the current one, and importable from."""
    shutil.copytree(trained, tmp_path / "runs/digits")
    shutil.copytree(pruned, tmp_path / "runs/digits_half")
    for name in ("FOLDER", "CIFAR10_JPEG", "DIR"):
        make_images(tmp_path / name)
    (tmp_path / "my_package.py").write_text(MY_PACKAGE)
    torch.save(resnet20(num_classes=2).state_dict(), tmp_path / "WEIGHTS.th")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    forget_modules()  # other tests may have some of the same name
    yield tmp_path
    forget_modules()


def forget_modules() -> None:
    for name in [name for name in sys.modules if name.startswith("my_")]:
        del sys.modules[name]


QUICK_PAGES = {"CONTRIBUTING.md", "docs/configuration.md", "docs/extending.md"}


@pytest.mark.parametrize(
    "name", [name if name in QUICK_PAGES else slow(name) for name in PAGE_NAMES]
)
def test_a_page_does_what_it_says(name: str, reader: Path, capsys: pytest.CaptureFixture) -> None:
    work = Reader(capsys)
    for shown in shown_in(ROOT / name):
        try:
            work.do(shown)
        except (Exception, SystemExit) as error:
            pytest.fail(f"{shown.place}: {shown.text}: {type(error).__name__}: {error}", False)
    assert work.status == 0, work.output


@pytest.mark.parametrize("shown", COMMANDS, ids=lambda shown: f"{shown.place} {shown.text[:40]}")
def test_every_command_is_run_somewhere(shown: Shown) -> None:
    """Something here runs it, or CI does; its settings exist and are allowed."""
    ci = (ROOT / ".ci/run").read_text()
    install = INSTALL.fullmatch(shown.text)
    stand_in = elsewhere(shown.text)
    if stand_in:
        file, _, test = stand_in.partition("::")
        assert f"def {test}(" in (ROOT / "tests" / file).read_text()
    elif install:
        assert set(filter(None, (install.group(1) or "").split(","))) <= extras_of(ci)
        return
    elif shown.text in IN_CI:
        assert IN_CI[shown.text] in [line.strip() for line in ci.splitlines()]
        return
    name, arguments = program(shown.text)
    assert name or stand_in, f"{shown.place}: nothing runs {shown.text!r}: see tests/reader.py"
    if name == "measurement":
        assert Path(arguments[0]).stem in BENCHMARKS
    elif name in SETTINGS and not {"--help", "--config-dir"} & set(arguments):
        arguments = [a for a in arguments if "interval(" not in a]  # Optuna's, not the settings'
        assert list(composed(name, with_checkpoint(name, arguments)))


def extras_of(ci: str) -> set[str]:
    """The extras that CI installs, with those that they bring along."""
    (installed,) = filter(None, INSTALL.findall(ci))
    extras = set(installed.split(","))
    for line in (ROOT / "pyproject.toml").read_text().splitlines():
        brought = re.search(r"\"rni_pl\[([\w,]+)\]\"", line)
        if brought:
            extras |= set(brought.group(1).split(","))
    return extras


def with_checkpoint(name: str, arguments: list[str]) -> list[str]:
    """Resuming needs no checkpoint, and `--cfg` alone none either."""
    if name == "prune" and not any(a.startswith(("checkpoint=", "resume=")) for a in arguments):
        return [*arguments, "checkpoint=x"]
    return arguments


def test_every_figure_of_a_run_is_explained(trained: Path, pruned: Path) -> None:
    lines = (ROOT / "docs/concepts.md").read_text().splitlines()
    explained = "".join(line.split("|")[1] for line in lines if line.startswith("| `"))
    for run in (trained, pruned):
        for figure in json.loads((run / "summary.json").read_text()):
            assert f"`{figure}`" in explained, figure


def test_blocks_say_what_they_are() -> None:
    for shown in EVERYTHING:
        assert shown.language in LANGUAGES, shown.place


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page}: {target}"


def test_configuration_page_is_up_to_date(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs/configuration.py", tmp_path / "docs")
    done = run_python("docs/configuration.py", cwd=tmp_path)
    assert done.status == 0, done.err
    written = (tmp_path / "docs/configuration.md").read_text()
    assert written == (ROOT / "docs/configuration.md").read_text(), (
        "run python docs/configuration.py"
    )

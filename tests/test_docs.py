"""Every command and every piece of code on the pages runs; see `shown.py` for how it is cut short.

A ``text`` block is what the command or the code above it prints, but for the figures; a block whose
first line is a comment with the name of a file goes into that file.

A page is worked through from top to bottom in a directory of its own, so that what a command writes
is there for the next. Where it starts there is what a reader has by then: `runs/digits` and
`runs/digits_half` of the README, and a folder of images under each name in capitals.
"""

import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import ROOT, run_command, run_python
from PIL import Image
from shown import (
    BENCHMARKS,
    LANGUAGES,
    PAGES,
    Shown,
    composed,
    short_benchmark,
    short_run,
    shown_in,
    words,
)

from rni_pl.report.__main__ import main as report

PAGE_NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
EVERYTHING = [shown for page in PAGES for shown in shown_in(page)]
COMMANDS = [shown for shown in EVERYTHING if shown.language == "bash"]

# Run by .ci/run in place of a test, by the line that stands there.
IN_CI = {
    "python -m venv .venv": '"${PYTHON:-python3}" -m venv "$work/venv"',
    ". .venv/bin/activate": '. "$work/venv/bin/activate"',
    "ruff check .": "ruff check .",
    "ruff format --check .": "ruff format --check .",
    "mypy": "mypy",
    "pytest": "pytest",
    "pytest -m slow": "pytest -m slow "
    "tests/test_main_job.py tests/test_imagenet.py tests/test_commands.py",
}
# Run by another test, which is named, as far as one machine can: word in the command -> test.
ELSEWHERE = {
    "launch=joblib": "test_sweeps.py::test_launchers_give_what_the_serial_sweep_gives",
    "launch=slurm": "test_sweeps.py::test_launchers_compose",
    "search=optuna": "test_sweeps.py::test_search_maximises_validation_accuracy",
    "torchrun": "test_distributed.py::test_number_of_processes",
    "srun": "test_distributed.py::test_number_of_processes",
    "rni_pl[ray]": "test_sweeps.py::test_launchers_compose",
}
INSTALL = re.compile(r"pip install (?:--quiet )?(?:-e )?\"?(?:\.|rni_pl)(?:\[([\w,]+)\])?\"?")
SETTINGS = {"train", "prune", "export", "benchmark"}  # commands that are given settings
SCRIPTS = {"train.py": "train", "prune.py": "prune"}
TOOLS = {"rni_pl.export": "export", "rni_pl.benchmark": "benchmark", "rni_pl.report": "report"}


def slow(name: str) -> Any:
    return pytest.param(name, marks=pytest.mark.slow)


def program(command: str) -> tuple[str, list[str]]:
    """What a command runs, and its arguments; the name is empty where nothing here knows it."""
    if "|" in command:
        return "pipeline", [command]
    first, *rest = [word for word in words(command) if word != "time"]
    if first.startswith("rni-"):
        return first.removeprefix("rni-"), rest
    if first == "python" and rest[0] == "-m":
        return TOOLS.get(rest[1], ""), rest[2:]
    if first == "python" and rest[0].startswith("benchmarks/"):
        return "measurement", rest
    if first == "python":
        return SCRIPTS.get(rest[0], ""), rest[1:]
    if first == "tensorboard" or command == "pre-commit install":
        return first, rest
    return "", []


def elsewhere(command: str) -> str:
    """The test that runs a command in place of those here; nothing for most."""
    return next((test for word, test in ELSEWHERE.items() if word in command), "")


@pytest.fixture
def reader(
    trained: Path, pruned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A directory with what a reader has before a page; the current one, and importable from."""
    shutil.copytree(trained, tmp_path / "runs/digits")
    shutil.copytree(pruned, tmp_path / "runs/digits_half")
    for name in ("FOLDER", "CIFAR10_JPEG"):
        make_images(tmp_path / name)
    (tmp_path / "my_package.py").write_text(MY_PACKAGE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    forget_modules()  # other tests may have some of the same name
    yield tmp_path
    forget_modules()


def forget_modules() -> None:
    for name in [name for name in sys.modules if name.startswith("my_")]:
        del sys.modules[name]


MY_PACKAGE = """
from torch import nn

class MyNet(nn.Sequential):
    def __init__(self, width, num_classes):
        super().__init__(
            nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
            nn.Flatten(), nn.Linear(width, num_classes),
        )
"""


def make_images(root: Path) -> None:
    generator = np.random.default_rng(0)
    for folder in ("train/cat", "train/dog", "test/cat", "test/dog"):
        (root / folder).mkdir(parents=True)
        for i in range(24):
            pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / folder / f"{i}.png")


class Reader:
    """Does what a page says, in the current directory, and remembers what was printed last."""

    def __init__(self, capture: pytest.CaptureFixture) -> None:
        self.capture = capture
        self.names: dict = {"__name__": "page"}  # of the page's Python code
        self.last = {"train": "runs/digits", "prune": "runs/digits_half"}
        self.status, self.output = 0, ""

    def do(self, shown: Shown) -> None:
        if shown.file is not None:
            Path(shown.file).parent.mkdir(parents=True, exist_ok=True)
            Path(shown.file).write_text(shown.text)
        elif shown.language == "text":
            self.compare(shown.text)
        elif shown.language == "yaml":
            yaml.safe_load(shown.text)
        else:
            assert self.status == 0, f"the command before failed: {self.output}"
            self.execute(shown)

    def execute(self, shown: Shown) -> None:
        self.capture.readouterr()
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            if shown.language == "python":
                exec(re.sub(r"\bepochs=\d+", "epochs=1", shown.text), self.names)
            elif shown.text not in IN_CI and not elsewhere(shown.text):
                self.status = self.run(*program(shown.text)) or 0
        captured = self.capture.readouterr()
        self.output = "\n".join([captured.out, captured.err, *(str(w.message) for w in warned)])

    def compare(self, text: str) -> None:
        """Every line that a page shows was printed, but for its figures; an error was one."""
        for line in text.splitlines():
            assert but_for_figures(line) in but_for_figures(self.output), line
        assert self.status == (2 if text.startswith("error: ") else 0), self.output
        self.status = 0

    def run(self, name: str, arguments: list[str]) -> int | None:
        own = name if any(a.startswith("resume=") for a in arguments) else "train"
        arguments = [re.sub(r"=RUN(_DIR)?$", f"={self.last.get(own)}", a) for a in arguments]
        if name in ("train", "prune"):
            arguments = short_run(name, arguments)
            status = run_command(name, *arguments)
            given = [a.partition("=")[2] for a in arguments if a.startswith("hydra.run.dir=")]
            if status == 0:
                self.last[name] = (given or [self._newest(name)])[0]
            return status
        if name == "benchmark":
            return run_command(name, *short_benchmark(arguments))
        if name == "export":
            (output,) = [a.partition("=")[2] for a in arguments if a.startswith("output=")]
            return run_command(name, *arguments) or 1 - Path(output).is_file()
        if name == "report":
            return report(arguments)
        return getattr(self, name.replace("-", "_"))(arguments) if name else None

    def _newest(self, name: str) -> str:
        """Where the last run without a directory of its own went, if there was one."""
        found = sorted(Path("runs", name).rglob("summary.json"), key=lambda f: f.stat().st_mtime)
        return str(found[-1].parent) if found else self.last[name]

    def measurement(self, arguments: list[str]) -> None:
        script, *rest = arguments
        name = Path(script).stem
        if name == "pruning":
            pytest.importorskip("torch_pruning")
        done = run_python(
            str(ROOT / script), *rest, *BENCHMARKS[name], cwd=Path.cwd(), OMP_NUM_THREADS="1"
        )
        assert done.status == 0, done.err

    def pipeline(self, arguments: list[str]) -> None:
        (line,) = arguments
        if "torch_pruning" in line:
            pytest.importorskip("torch_pruning")
        line = line.replace("python ", f"{sys.executable} ")
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", line], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert int(done.stdout) > 0

    def tensorboard(self, arguments: list[str]) -> None:
        process = subprocess.Popen(
            [sys.executable, "-m", "tensorboard.main", *arguments, "--port", "0"],
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert any("http://localhost" in line for line in process.stderr)
        finally:
            process.terminate()
            process.communicate()

    def pre_commit(self, arguments: list[str]) -> None:
        shutil.copy(ROOT / ".pre-commit-config.yaml", ".")
        subprocess.run(["git", "init", "--quiet"], check=True)
        subprocess.run([sys.executable, "-m", "pre_commit", *arguments], check=True)
        assert Path(".git/hooks/pre-commit").is_file()


def but_for_figures(text: str) -> str:
    """A text with one mark for every number, and one space for whatever is between words."""
    return " ".join(re.sub(r"\d+(\.\d+)?", "N", text).split())


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
    if elsewhere(shown.text):
        file, _, test = elsewhere(shown.text).partition("::")
        assert f"def {test}(" in (ROOT / "tests" / file).read_text()
    elif install:
        assert set(filter(None, (install.group(1) or "").split(","))) <= extras_of(ci)
    elif shown.text in IN_CI:
        assert IN_CI[shown.text] in [line.strip() for line in ci.splitlines()]
    else:
        name, arguments = program(shown.text)
        assert name, f"{shown.place}: nothing runs {shown.text!r}: see tests/test_docs.py"
        if name == "measurement":
            assert Path(arguments[0]).stem in BENCHMARKS
        elif name in SETTINGS and not {"--help", "--config-dir"} & set(arguments):
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

"""Working through a page: what its commands and its code do, one after the other."""

import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ROOT, run_command, run_python
from PIL import Image
from shown import BENCHMARKS, Shown, short_benchmark, short_run, words

from rni_pl.report.__main__ import main as report

# Run by .ci/run in place of a test, by the line that stands there.
IN_CI = {
    "python -m venv .venv": '"${PYTHON:-python3}" -m venv "$work/venv"',
    ". .venv/bin/activate": '. "$work/venv/bin/activate"',
    "ruff check .": "ruff check .",
    "ruff format --check .": "ruff format --check .",
    "mypy": "mypy",
    "pytest": "pytest",
    "pytest -m slow": "pytest -m slow",
}
# Run by another test, which is named, as far as one machine can: word in the command -> test.
ELSEWHERE = {
    "launch=joblib": "runs/test_sweeps.py::test_launchers_give_what_the_serial_sweep_gives",
    "launch=slurm": "runs/test_sweeps.py::test_launchers_compose",
    "hparams_search=optuna": "runs/test_sweeps.py::test_search_maximises_validation_accuracy",
    "trainer=ddp trainer.devices": "training/test_distributed.py::test_number_of_processes",  # GPUs
    "rni_pl[ray]": "runs/test_sweeps.py::test_missing_extras_are_named",
    "examples/": "test_examples.py::test_an_example_runs",
    "pip install ultralytics": "test_examples.py::test_an_example_runs",
    "torchrun": "training/test_distributed.py::test_two_machines",
    "srun": "training/test_distributed.py::test_two_machines",
    "experiment=": "conf/test_experiments.py::test_a_sweep_finds_its_places",
    "rni_pl.report runs/paper": "conf/test_experiments.py::test_a_sweep_finds_its_places",
    "rni_pl.report docs/results.csv": "report/test_results.py::"
    "test_the_tables_of_the_page_are_those_of_the_runs",
}
SCRIPTS = {"train.py": "train", "prune.py": "prune"}
TOOLS = {
    "rni_pl.export": "export",
    "rni_pl.benchmark": "benchmark",
    "rni_pl.sensitivity": "sensitivity",
    "rni_pl.report": "report",
}


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
        said = [f"warning: {w.message}" for w in warned]  # as the commands print them
        self.output = "\n".join([captured.out, captured.err, *said])

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
            given = [a.partition("=")[2] for a in arguments if a.startswith("hydra.run.dir=")]
            for place in given:  # of a reader who begins with this page
                shutil.rmtree(place, ignore_errors=True)
            status = run_command(name, *arguments)
            if status == 0:
                self.last[name] = (given or [self._newest(name)])[0]
            return status
        if name == "benchmark":
            return run_command(name, *short_benchmark(arguments))
        if name == "export":
            (output,) = [a.partition("=")[2] for a in arguments if a.startswith("output=")]
            return run_command(name, *arguments) or 1 - Path(output).is_file()
        if name == "sensitivity":
            return run_command(name, *arguments, "share=0.1", "ratios=[0.5]")
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

"""What the pages show: commands and code, as found in the text, and cut short to be run.

Commands are the lines of ``bash`` blocks, and whatever else in backticks starts like a command and
has an argument. Cutting short is mechanical: one epoch of three small batches, data that would have
to be downloaded replaced by digits, one repetition in place of many, ``epochs=1`` in Python. All
else stays as it is written.
"""

import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from conftest import ROOT
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from rni_pl.config import compose_config

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LANGUAGES = {"bash", "python", "yaml", "text"}

FENCE = re.compile(r"^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"(?<!`)`(?P<text>(?:time )?(?:python|pip|tensorboard|rni-\w+) [^`]+)`(?!`)")
NAME_ALONE = re.compile(r"(time )?python (-m )?[\w./]+")

FEW = {
    "trainer.max_epochs": "1",
    "trainer.limit_train_batches": "3",
    "trainer.limit_val_batches": "1",
    "trainer.limit_test_batches": "1",
    "trainer.enable_model_summary": "false",
    "data.batch_size": "16",
    "data.eval_batch_size": "64",
}
AT_HAND = (
    "digits",
    "image_folder",
    "cifar10_jpeg",
    None,
)  # None: what the checkpoint was trained on
ONCE = {"repeats": "1"}
# Only where a command leaves them open.
QUICK = {"engines": "eager", "batch": "1", "threads": "1"}
BENCHMARKS = {
    "accuracy": ["--per-class", "2", "--epochs", "1", "--seeds", "1"],
    "growth": ["--steps", "1", "--rounds", "1"],
    "pruning": ["resnet56", "--repeats", "1"],
    "training": ["--quick", "--archs", "resnet20", "--rounds", "1", "--steps", "1"],
}


@dataclass(frozen=True)
class Shown:
    """A command or a block of code, where it stands, and in which language it is."""

    place: str
    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The file that a block is to be written to, if its first line names one."""
        first = re.match(r"# ([\w./-]+\.(?:py|yaml))\n", self.text)
        return first.group(1) if first else None


def shown_in(page: Path) -> Iterator[Shown]:
    """Commands and code of a page, from top to bottom."""
    text = page.read_text()
    found = {match.start(): match for match in FENCE.finditer(text)}
    prose = FENCE.sub(lambda block: re.sub("[^\n]", " ", block.group()), text)
    found |= {match.start(): match for match in INLINE.finditer(prose)}
    for start, match in sorted(found.items()):
        place = f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, start) + 1}"
        language = match.groupdict().get("language", "bash")
        if language != "bash":
            yield Shown(place, language, match["text"])
        elif "language" in match.groupdict():
            yield from (Shown(place, "bash", command) for command in commands(match["text"]))
        elif not NAME_ALONE.fullmatch(match["text"]):
            yield Shown(place, "bash", " ".join(match["text"].split()))


def commands(block: str) -> Iterator[str]:
    """The commands of a block: its lines, and what ``&&`` joins; a pipeline stays whole."""
    for line in block.replace("\\\n", " ").splitlines():
        line = re.sub(r"(^|\s)#.*", "", line)
        parts = [line] if "|" in line else line.split("&&")
        yield from (" ".join(part.split()) for part in parts if part.strip())


def words(command: str) -> list[str]:
    """A command as the shell would split it."""
    return shlex.split(command)


def composed(name: str, arguments: list[str]) -> Iterator[DictConfig]:
    """The configuration of every job that a command would run; raises where it is not sound."""
    overrides = [argument for argument in arguments if "=" in argument]
    jobs = [overrides]
    if "-m" in arguments:
        (jobs,) = BasicSweeper.split_arguments(
            OverridesParser.create().parse_overrides(overrides), max_batch_size=None
        )
    for job in jobs:
        yield compose_config(name, list(job))


def replaced(arguments: Iterable[str], values: dict[str, str]) -> list[str]:
    """Arguments with some values set in place of those given."""
    kept = [argument for argument in arguments if argument.partition("=")[0] not in values]
    return [*kept, *(f"{key}={value}" for key, value in values.items())]


def short_run(name: str, arguments: list[str]) -> list[str]:
    """The arguments of train.py or prune.py for a run in a second or two."""
    if {"--help", "--cfg"} & set(arguments):
        return arguments
    if any(argument.startswith("resume=") for argument in arguments):
        return replaced(arguments, {"trainer.max_epochs": "1"})  # the rest is the run's own
    if "--config-dir" not in arguments:
        choices = {config.data.get("choice") for config in composed(name, arguments)}
        if not choices <= set(AT_HAND):
            arguments = [a for a in arguments if not a.startswith("data.")]
            arguments = replaced(arguments, {"data": "digits"})
    few = dict(FEW)
    if any(argument.startswith("prune.steps=") for argument in arguments):
        del few["trainer.max_epochs"]  # the steps take their epochs
    return replaced(arguments, few)


def short_benchmark(arguments: list[str]) -> list[str]:
    """The arguments of rni_pl.benchmark for a measurement that says nothing, but ends soon."""
    given = {argument.partition("=")[0] for argument in arguments}
    extra = [f"{key}={value}" for key, value in QUICK.items() if key not in given]
    return replaced([*arguments, *extra], ONCE)

"""Training throughput: the reference recipe, our pipeline, and the bare step, in one run.

    pip install -e . && python benchmarks/training.py [--quick] [--archs resnet56 vgg16]

Three contenders, each in a process of its own, take turns on random CIFAR-sized images:

(a) the reference recipe as a plain loop, `reference.py`;
(b) our pipeline, through Lightning's Trainer with the default settings;
(c) the bare step of our settings, one fixed batch, with neither Lightning nor data.

Prints images/s (medians over rounds), the median of the ratios within a round, what regulariser
and data add to a step, the share of the fastest convolution's speed, how many times as fast as (a)
a step of nothing but its convolutions would be, and the peak memory of the processes of
(a) and (b). Nothing else should run on the machine.
"""

import argparse
import itertools
import statistics
import tempfile
import time
import warnings
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from bare import bare_step
from convolutions import peak, seconds_of_convolutions
from omegaconf import DictConfig
from reference import BATCH, MEAN, STD, random_images
from torch import nn
from turns import Contender, Turn

from rni_pl import config, models
from rni_pl.callbacks import History, SparsityRegulariser
from rni_pl.callbacks.sparsity import add_gradient
from rni_pl.cost import macs
from rni_pl.data import Augment, BatchLoader, ImageData, Images, Split
from rni_pl.regularisers import Regulariser
from rni_pl.training import fitting, hardware
from rni_pl.training.network import new_classifier
from rni_pl.training.trainer import make_trainer

MEASURED = ("regulariser", "data", "peak", "convolutions")
"""What (c) is asked for beside its steps."""


@dataclass(frozen=True)
class Job:
    """What is trained."""

    arch: str
    method: str
    images: int

    def config(self) -> DictConfig:
        """The configuration of `train.py`."""
        given = [f"arch={self.arch}", f"method={self.method}"]
        return config.compose_config("train", [*given, "trainer.enable_model_summary=false"])

    def regulariser(self) -> Regulariser:
        """At the paper's values for this network."""
        return fitting.make(self.config().method, "method", Regulariser)

    def model(self) -> nn.Module:
        """The network, about to be trained."""
        return getattr(models, self.arch)(norm=self.regulariser().norm).train()


def noise(count: int) -> Images:
    """Random images, as a data set."""
    train = Split(*random_images(count))
    return Images(train, train.take(torch.arange(BATCH)), [str(i) for i in range(10)])


def run_pipeline(job: Job, turn: Turn) -> None:
    """(b): Trainer with every callback that `train.py` has."""

    class TakeTurns(pl.Callback):
        def on_train_batch_end(self, *_: object) -> None:
            turn.step()

    cfg, regulariser = job.config(), job.regulariser()
    data = ImageData("noise", lambda root: noise(job.images), mean=MEAN, std=STD)
    data.setup()
    classifier = new_classifier(cfg, data, regulariser, fitting.make_recipe(cfg))
    callbacks: list[Any] = [SparsityRegulariser(regulariser), History(), TakeTurns()]
    with tempfile.TemporaryDirectory() as folder:
        make_trainer(cfg, Path(folder), callbacks).fit(classifier, datamodule=data)


def run_bare(job: Job, turn: Turn) -> None:
    """(c): the step by itself, always on the same batch."""
    cfg, regulariser = job.config(), job.regulariser()
    hardware.keep_freed_memory()
    recipe = fitting.make_recipe(cfg)
    images, labels = next(iter(batches(BATCH)))
    step = bare_step(job.model(), recipe, regulariser, images, labels, cfg.trainer.precision)
    while True:
        step()
        turn.step()


def batches(images: int) -> BatchLoader:
    """Our batches, without Lightning."""
    return BatchLoader(Split(*random_images(images)), BATCH, MEAN, STD, Augment())


def seconds_of_regulariser(job: Job, count: int = 50) -> float:
    """Seconds that the penalty's gradient adds to a step."""
    model, regulariser = job.model(), job.regulariser()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    start = time.perf_counter()
    for _ in range(count):
        add_gradient(model, regulariser)
    return (time.perf_counter() - start) / count


def seconds_of_data(job: Job, count: int = 50) -> float:
    """Seconds that a batch takes to be picked, augmented and normalised."""
    loader = iter(batches(job.images))
    next(loader)
    start = time.perf_counter()
    for _ in range(count):
        next(loader)
    return (time.perf_counter() - start) / count


def serve(name: str, job: Job) -> None:
    """Be contender b or c."""
    if name == "b":
        run_pipeline(job, Turn())
    run_bare(
        job,
        Turn(
            regulariser=lambda: seconds_of_regulariser(job),
            data=lambda: seconds_of_data(job),
            peak=lambda: peak(job.model()),
            convolutions=lambda: seconds_of_convolutions(job.model()),
        ),
    )


def contenders(job: Job) -> dict[str, Contender]:
    """The three, started."""
    here = Path(__file__)
    what = (job.arch, job.method, str(job.images))
    penalty = job.regulariser()
    plain = [job.arch, type(penalty).__name__, *map(str, astuple(penalty)), str(job.images)]
    return {
        "a": Contender(str(here.with_name("reference.py")), *plain),
        "b": Contender(str(here), "--serve", "b", *what),
        "c": Contender(str(here), "--serve", "c", *what),
    }


def compare(job: Job, rounds: int, steps: int) -> dict[str, float]:
    """All figures of one network and method."""
    three = contenders(job)
    times: dict[str, list[float]] = {name: [] for name in three}
    try:
        for name in list(three) * rounds:
            times[name].append(three[name].ask(str(steps)) / steps)
        memory = {f"{name} MB": three[name].ask("memory") for name in "ab"}
        bare = {name: three["c"].ask(name) for name in MEASURED}
    finally:
        for contender in three.values():
            contender.close()
    step = statistics.median(times["c"])
    rate = {name: BATCH / statistics.median(values) for name, values in times.items()}
    giga_flop = 3 * 2 * macs(job.model(), (3, 32, 32)) / 1e9  # backward is twice forward
    return {
        **rate,
        **memory,
        "b/a": middle_ratio(times["a"], times["b"]),
        "b/c": middle_ratio(times["c"], times["b"]),
        "regulariser": bare["regulariser"] / step,
        "data": bare["data"] / step,
        "peak": rate["b"] * giga_flop / bare["peak"],
        "limit": statistics.median(times["a"]) / bare["convolutions"],
    }


def middle_ratio(slow: list[float], fast: list[float]) -> float:
    """The median, over rounds, of how much faster `fast` was."""
    return statistics.median(s / f for s, f in zip(slow, fast, strict=True))


def main() -> None:
    """Print one line for each network and method."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archs", nargs="+", default=["resnet56", "vgg16"])
    parser.add_argument("--methods", nargs="+", default=["rni", "l1", "ucs"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--images", type=int, default=50_000, help="in the training set")
    parser.add_argument("--quick", action="store_true", help="RNI only, few rounds")
    parser.add_argument("--serve", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    if given.serve:
        name, arch, method, images = given.serve
        serve(name, Job(arch, method, int(images)))
    if given.quick:
        given.methods, given.rounds, given.steps = ["rni"], 3, 6
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, batch {BATCH}")
    print("| network | method | a, img/s | b | c | b/a | b/c | regulariser | data | of conv peak "
          "| convs only/a | a, MB | b, MB |\n" + "|---" * 13 + "|")  # fmt: skip
    for arch, method in itertools.product(given.archs, given.methods):
        found = compare(Job(arch, method, given.images), given.rounds, given.steps)
        cells = [f"{found[k]:.0f}" for k in "abc"] + [f"{found[k]:.2f}" for k in ("b/a", "b/c")]
        cells += [f"{found[k]:.1%}" for k in ("regulariser", "data", "peak")]
        cells += [f"{found['limit']:.2f}", *(f"{found[k]:.0f}" for k in ("a MB", "b MB"))]
        print("| " + " | ".join([arch, method, *cells]) + " |", flush=True)


if __name__ == "__main__":
    main()

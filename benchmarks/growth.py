"""How the cost of a training step grows: with depth, width, image size and batch.

    python benchmarks/growth.py [--steps 8] [--rounds 3]

The bare step of our settings (see `training.py`, c), RNI; images/s are medians over rounds in which
all cases take turns. GFLOP/s counts forward and backward.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torchvision
from bare import bare_step
from torch import nn

from rni_pl import convert_batchnorm, models
from rni_pl.cost import macs
from rni_pl.regularisers import RNI
from rni_pl.training import hardware
from rni_pl.training.recipe import Recipe

RECIPE = Recipe(partial(torch.optim.SGD, lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-4))


@dataclass(frozen=True)
class Case:
    """A network, the size of its images, and the images of a step."""

    what: str
    build: Callable[[], nn.Module]
    size: int = 32
    batch: int = 64

    def step(self) -> Callable[[], None]:
        """A training step."""
        images = torch.randn(self.batch, 3, self.size, self.size)
        labels = torch.randint(0, 10, (self.batch,))
        return bare_step(convert_batchnorm(self.build()), RECIPE, RNI(), images, labels)


def wide(width: int) -> nn.Module:
    """A ResNet-26 of bottlenecks for ImageNet's layout, `width` channels in its first blocks."""
    resnet = torchvision.models.resnet
    return resnet.ResNet(resnet.Bottleneck, [2, 2, 2, 2], 10, width_per_group=width)


CASES = [
    *(Case(f"depth: ResNet-{n}", getattr(models, f"resnet{n}")) for n in (20, 32, 44, 56, 110)),
    *(Case(f"width: ResNet-26, {w}", partial(wide, w)) for w in (32, 64, 128)),
    *(Case(f"images: ResNet-20, {s} pixels", models.resnet20, s) for s in (32, 64, 96)),
    *(Case(f"batch: ResNet-20, {b}", models.resnet20, 32, b) for b in (16, 64, 256)),
]


def main() -> None:
    """Print one line for each case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    hardware.keep_freed_memory()
    steps = [case.step() for case in CASES]
    times: list[list[float]] = [[] for _ in CASES]
    for _ in range(given.rounds):
        for step, taken in zip(steps, times, strict=True):
            step()
            start = time.perf_counter()
            for _ in range(given.steps):
                step()
            taken.append((time.perf_counter() - start) / given.steps)
    print("| | images/s | ms a step | GFLOP/s |\n|---|---|---|---|")
    for case, taken in zip(CASES, times, strict=True):
        seconds = statistics.median(taken)
        flop = 6 * macs(case.build(), (3, case.size, case.size)) * case.batch
        cells = [
            f"{case.batch / seconds:.0f}",
            f"{1e3 * seconds:.0f}",
            f"{flop / seconds / 1e9:.0f}",
        ]
        print("| " + " | ".join([case.what, *cells]) + " |")


if __name__ == "__main__":
    main()

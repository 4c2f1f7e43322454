"""Timing networks against each other: warmed up, in turns, by the median."""

import copy
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from rni_pl.benchmark.engines import ENGINES, Call, Setup

WARM_UP = 3  # calls, the first of which may compile
SHORTEST = 0.02  # seconds: calls that take less are timed several at a time


def seconds_a_batch(
    models: Sequence[nn.Module], image_shape: Sequence[int], setup: Setup
) -> list[float]:
    """Median time in which each network maps a batch of random images, on the CPU.

    `models` are in evaluation mode on the CPU. They take turns, so that whatever else the machine
    does meets all of them. `image_shape` is channels, height and width.
    """
    images = torch.randn(setup.batch, *image_shape, generator=torch.Generator().manual_seed(0))
    with _threads(setup.threads or torch.get_num_threads()):
        torch.compiler.reset()  # what was compiled for other networks slows the search for these
        calls = [ENGINES[setup.engine](model, images, setup) for model in models]
        return medians(calls, setup.repeats)


def latency(dense: nn.Module, pruned: nn.Module, image_shape: list[int]) -> dict[str, Any]:
    """Median time of a batch on the CPU before and after pruning, measured in turns.

    In the layout in which `load_model` returns networks; what Lightning has tested is in another.
    """
    setup = Setup("eager", batch=64, threads=torch.get_num_threads(), repeats=10)
    layout = torch.contiguous_format
    copies = [copy.deepcopy(model).cpu().float() for model in (dense, pruned)]
    models = [model.to(memory_format=layout).eval() for model in copies]
    before, after = seconds_a_batch(models, image_shape, setup)
    return {
        "engine": setup.engine,
        "batch": setup.batch,
        "threads": setup.threads,
        "dense_ms": 1000 * before,
        "pruned_ms": 1000 * after,
        "speedup": before / after,
    }


def medians(calls: Sequence[Call], repeats: int) -> list[float]:
    """Median seconds of each call, over rounds in which they take turns, back and forth."""
    counts = [_warm_up(call) for call in calls]
    taken: list[list[float]] = [[] for _ in calls]
    for number in range(repeats):
        order = range(len(calls))
        for i in reversed(order) if number % 2 else order:
            taken[i].append(_time(calls[i], counts[i]) / counts[i])
    return [statistics.median(times) for times in taken]


def _warm_up(call: Call) -> int:
    """How many calls at a time are long enough to be timed."""
    for _ in range(WARM_UP):
        call()
    return max(1, round(SHORTEST / _time(call, 1)))


def _time(call: Call, count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        call()
    return time.perf_counter() - start


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)

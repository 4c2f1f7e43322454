"""Time to plan and remove half the channels, ours beside Torch-Pruning's, in one process.

    pip install -e ".[bench]" && python benchmarks/pruning.py [NETWORK ...] [--repeats 5]

Each network is pruned at ratio 0.5, globally, with the channels that residual additions tie, as
Torch-Pruning does; the two engines take turns, and the fastest of the repeats counts. Torch-Pruning
changes a copy that is made before its clock starts; ours makes its copy within. Prints a Markdown
table: milliseconds, their ratio, parameters and MACs after, and whether each result still runs.
"""

import argparse
import copy
import signal
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import timm
import torch
import torchvision
import zoo
from torch import nn

from rni_pl import models
from rni_pl.cost import macs, parameter_count
from rni_pl.norm import scaled_norms
from rni_pl.pruning import prune

OURS = [entry.name for entry in zoo.OURS]
TORCHVISION = [entry.name for entry in zoo.TORCHVISION]
# Its own versions of torchvision's networks are left out.
TIMM = [e.name for e in (*zoo.TIMM, *zoo.COUPLED) if e.name not in TORCHVISION]
LIMIT = 20  # seconds after which a network is given up


@dataclass
class Result:
    """What an engine made of a network: fastest time in seconds, or why it failed."""

    seconds: float = float("inf")
    params: int = 0
    macs: int = 0
    fault: str = ""


def build(name: str) -> tuple[nn.Module, int]:
    """A network with random scales, and the size of its images."""
    if name in OURS:
        model, size = getattr(models, name)(), 32
    elif name in TORCHVISION:
        aux = {"aux_logits": False, "init_weights": False}
        options = aux if name in ("googlenet", "inception_v3") else {}
        model, size = getattr(torchvision.models, name)(num_classes=10, **options), 128
    else:
        model, size = timm.create_model(name, num_classes=10), max(128, zoo.find(name).size)
    for _, norm in scaled_norms(model):
        nn.init.uniform_(norm.weight, 0.1, 1)
    return model.eval(), size


def stop(*_: Any) -> None:
    """Give up on a network."""
    raise TimeoutError(f"not done after {LIMIT} s")


def ours(model: nn.Module, x: torch.Tensor) -> nn.Module:
    """Our engine."""
    return prune(model, x, 0.5, coupled=True)[0]


def torch_pruning(model: nn.Module, x: torch.Tensor) -> nn.Module:
    """Torch-Pruning's, with the same importance."""
    import torch_pruning as tp

    heads = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == 10]
    pruner = tp.pruner.BNScalePruner(
        model, x, importance=tp.importance.BNScaleImportance(), pruning_ratio=0.5,
        global_pruning=True, ignored_layers=heads,
    )  # fmt: skip
    pruner.step()
    return model


def measure(
    engine: Callable[..., nn.Module], model: nn.Module, x: torch.Tensor, result: Result
) -> None:
    """Prune once, and note the time where it is the fastest so far."""
    given = copy.deepcopy(model)
    signal.alarm(LIMIT)
    start = time.perf_counter()
    try:
        pruned = engine(given, x)
        seconds = time.perf_counter() - start
        signal.alarm(0)
        with torch.no_grad():
            pruned.eval()(x)
    except Exception as error:  # whatever an engine may raise is a row of the table
        signal.alarm(0)
        result.fault = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:60]}"
        return
    result.seconds = min(result.seconds, seconds)
    result.params, result.macs = parameter_count(pruned), macs(pruned, x.shape[1:])


def row(name: str, repeats: int) -> str:
    """One line of the table."""
    torch.manual_seed(0)
    model, size = build(name)
    x = torch.randn(1, 3, size, size)
    results = {ours: Result(), torch_pruning: Result()}
    for _ in range(repeats):
        for engine, result in results.items():
            if not result.fault:
                measure(engine, model, x, result)
    mine, other = results[ours], results[torch_pruning]
    ratio = "" if mine.fault or other.fault else f"{other.seconds / mine.seconds:.2f}"
    cells = [name, show(mine), show(other), ratio, f"{parameter_count(model) / 1e6:.2f}"]
    cells += [size_of(mine.params, mine, 1e6), size_of(other.params, other, 1e6)]
    cells += [f"{macs(model, x.shape[1:]) / 1e9:.3f}"]
    cells += [size_of(mine.macs, mine, 1e9), size_of(other.macs, other, 1e9)]
    return "| " + " | ".join(cells) + " |"


def show(result: Result) -> str:
    """Milliseconds, or the fault."""
    return result.fault.replace("|", "/") or f"{1000 * result.seconds:.0f}"


def size_of(value: Any, result: Result, unit: float) -> str:
    """A count in millions or billions, where there is one."""
    return "" if result.fault else f"{value / unit:.3g}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=[*OURS, *TORCHVISION, *TIMM])
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    signal.signal(signal.SIGALRM, stop)
    print(
        "| network | ours, ms | Torch-Pruning, ms | times faster | M params | ours | Torch-Pruning "
        "| G MACs | ours | Torch-Pruning |\n|---|---|---|---|---|---|---|---|---|---|"
    )
    for name in arguments.networks:
        print(row(name, arguments.repeats), flush=True)


if __name__ == "__main__":
    main()

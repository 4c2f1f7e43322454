"""Prunes a network of another package, and finds out whether what is left works."""

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from suites import Subject, norms_of
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from rni_pl.cost import parameter_count
from rni_pl.pruning import PruningReport, prune, resize, structure_of


@dataclass
class Tried:
    """A network at ratio 0.5, globally, coupled, in plain values.

    Attributes:
        shape: of the input.
        share: of the BatchNorm channels that can go.
        params: before and after.
        equal: the largest difference to the masked network's outputs, relative to the largest
            value of each; None: what `prune` itself found, `verify`, is what there is.
        skipped: norm layer that is left whole -> why.
        failed: what did not hold.
    """

    shape: list[int]
    share: float = 0.0
    params: list[int] = field(default_factory=list)
    equal: float | None = None
    constants: bool = False
    skipped: dict[str, str] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)


def attempt(subject: Subject) -> Tried:
    """What the engine makes of one network."""
    model, inputs = subject.build(), subject.inputs()
    tried = Tried(list(subject.shape), params=[parameter_count(model)])
    try:
        pruned, report = prune(model, inputs, 0.5, "global", coupled=True)
    except Exception as error:  # whatever goes wrong belongs in the table
        tried.failed.append(_said("prune", error))
        return tried
    total = sum(norm.num_features for norm in norms_of(model))
    tried.share, tried.skipped = report.channels_dense / total, report.skipped
    tried.params.append(parameter_count(pruned))
    tried.constants = report.constants
    if not subject.sorted:
        with _noting(tried, "equal"):
            tried.equal = apart(model, pruned, report, inputs)
    with _noting(tried, "trains"):
        before, after = (gradients(subject, network, inputs) for network in (model, pruned))
        if before != after:
            tried.failed.append(f"trains: {len(before ^ after)} parameters without a gradient")
    with _noting(tried, "rebuilds"):
        if not rebuilds(subject, pruned, inputs):
            tried.failed.append("rebuilds: no")
    return tried


class _noting:
    """Notes an exception as one of the things that did not hold."""

    def __init__(self, tried: Tried, check: str) -> None:
        self.tried, self.check = tried, check

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
        if isinstance(error, Exception):
            self.tried.failed.append(_said(self.check, error))
        return isinstance(error, Exception) or error is None


def _said(check: str, error: Exception) -> str:
    message = str(error).strip().splitlines() or [""]
    return f"{check}: {type(error).__name__}: {message[0][:160]}"


@torch.no_grad()
def apart(
    model: nn.Module, pruned: nn.Module, report: PruningReport, inputs: tuple[Any, ...]
) -> float:
    """How far the outputs are from those with the removed channels' scale and bias at 0."""
    masked = copy.deepcopy(model)
    for name, kept in report.kept.items():
        norm: Any = masked.get_submodule(name)
        gone = torch.ones(norm.num_features, dtype=torch.bool)
        gone[kept] = False
        norm.weight[gone] = norm.bias[gone] = 0.0
    given = pytree.tree_map_only(Tensor, Tensor.double, inputs)
    expected, found = (outputs(n.double(), given) for n in (masked, copy.deepcopy(pruned)))
    if [x.shape for x in expected] != [x.shape for x in found]:
        raise ValueError("the outputs have other shapes")
    pairs = [(e, f) for e, f in zip(expected, found, strict=True) if e.numel()]
    return max(float((e - f).abs().max() / e.abs().max().clamp_min(1e-12)) for e, f in pairs)


def outputs(network: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    """Every tensor that a network gives in evaluation mode."""
    torch.manual_seed(0)
    return list(_floats(network.eval()(*copy.deepcopy(inputs))))


def _floats(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict):
        yield from _floats(list(value.values()))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _floats(each)
    elif hasattr(value, "__dict__"):
        yield from _floats(list(vars(value).values()))


def gradients(subject: Subject, network: nn.Module, inputs: tuple[Any, ...]) -> set[str]:
    """Take a step of training; the parameters that have a gradient then."""
    network = copy.deepcopy(network).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4)
    given = list(copy.deepcopy(inputs))
    if subject.targets:
        given.append([copy.deepcopy(subject.targets) for _ in inputs[0]])
    torch.manual_seed(0)
    made = list(_floats(network(*given)))
    sum((x.square().mean() for x in made if x.requires_grad), torch.zeros(())).backward()
    optimizer.step()
    parameters = dict(network.named_parameters())
    for name, parameter in parameters.items():
        if parameter.grad is not None and parameter.grad.shape != parameter.shape:
            raise ValueError(f"the gradient of {name} has another shape")
    return {name for name, parameter in parameters.items() if parameter.grad is not None}


def rebuilds(subject: Subject, pruned: nn.Module, inputs: tuple[Any, ...]) -> bool:
    """Whether a network built anew is the pruned one, by its structure and its weights."""
    structure = json.loads(json.dumps(structure_of(pruned)))
    again = resize(subject.make(), structure)
    again.load_state_dict(pruned.state_dict())
    with torch.no_grad():
        pairs = zip(outputs(pruned, inputs), outputs(again, inputs), strict=True)
        return all(torch.equal(one, other) for one, other in pairs)


def cells(name: str, row: dict[str, Any], plain: Callable[[str], str]) -> list[str]:
    """One row of a table; `plain` shortens the reasons."""
    equal, failed = row["equal"], "; ".join(row["failed"]).replace("|", "/")
    shown = "" if row["failed"] and equal is None else "verify" if equal is None else f"{equal:.0e}"
    counts: dict[str, int] = {}
    for why in map(plain, row["skipped"].values()):
        counts[why] = counts.get(why, 0) + 1
    whole = "; ".join(f"{why} ({count})" for why, count in counts.items()).replace("|", "/")
    return [
        name, "×".join(map(str, row["shape"])),
        " → ".join(f"{count / 1e6:.3g}" for count in row["params"]),
        f"{row['share']:.0%}", shown, failed or "all", whole or "none",
    ]  # fmt: skip

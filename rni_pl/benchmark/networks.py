"""Which networks are compared: those of checkpoints, and what pruning would make of them."""

import inspect
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from rni_pl.config import plain
from rni_pl.cost import macs
from rni_pl.errors import ConfigError
from rni_pl.pruning import prune
from rni_pl.runs.checkpoint import load_model
from rni_pl.runs.spec import ModelSpec, build


@dataclass(frozen=True)
class Network:
    """A network in evaluation mode on the CPU, what tables call it, and its MACs an image."""

    name: str
    model: nn.Module
    macs: int


@dataclass
class Family:
    """Pruned networks and the dense one that they come from."""

    spec: ModelSpec
    dense: Network
    pruned: list[Network] = field(default_factory=list)


def families(config: DictConfig) -> list[Family]:
    """The networks that the configuration asks for.

    A dense network of which no checkpoint is given is built anew, with random weights: how fast it
    is does not depend on them.

    Raises:
        RniError: a checkpoint cannot be loaded, or cannot be pruned as asked.
    """
    found: dict[str, Family] = {}
    options = plain(config.prune)
    others = options.keys() - inspect.signature(prune).parameters.keys()
    if others:
        raise ConfigError(f"prune.{min(others)} is a setting of prune.py, not of the benchmark")
    paths = as_list(plain(config)["checkpoint"])
    plainly: dict[str, str] = {}  # checkpoints that are shown as the dense network and no other
    for path in paths:
        model = load_model(path, list(config.allow))
        spec: ModelSpec = model.model_spec  # type: ignore[assignment]
        if spec.structure and as_list(options["ratio"]):
            raise ConfigError(f"prune.ratio is for dense checkpoints; checkpoint={path} is pruned")
        dense = model if not spec.structure else _built(replace(spec, structure={}))
        key = str((spec.arch, spec.num_classes, spec.norm, spec.image_shape))
        if not spec.structure and not as_list(options["ratio"]):
            if key in plainly:
                raise ConfigError(
                    f"checkpoint={path} is the same dense network as {plainly[key]}, and as fast; "
                    "allowed: one of them, or prune.ratio=..."
                )
            plainly[key] = path
        family = found.setdefault(key, Family(spec, _network("dense", dense, spec)))
        smaller = [(path, model)] if spec.structure else _pruned(model, spec, options)
        if len(paths) > 1 and not spec.structure:
            smaller = ((f"{path}, {name}", pruned) for name, pruned in smaller)
        family.pruned += [_network(name, pruned, spec) for name, pruned in smaller]
    return list(found.values())


def as_list(value: Any) -> list[Any]:
    """A setting that is one value or a list."""
    return value if isinstance(value, list) else [value]


def _network(name: str, model: nn.Module, spec: ModelSpec) -> Network:
    return Network(name, model, macs(model, spec.image_shape))


def _built(spec: ModelSpec) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        return build(spec).eval()


def _pruned(
    model: nn.Module, spec: ModelSpec, options: dict[str, Any]
) -> Iterator[tuple[str, nn.Module]]:
    """What pruning makes of a dense network, for every ratio and every `round_to` asked for."""
    scope = options["scope"] or spec.scope
    ratios, multiples = (as_list(options[key]) for key in ("ratio", "round_to"))
    for ratio, multiple in itertools.product(ratios, multiples):
        chosen = {**options, "ratio": ratio, "round_to": multiple, "scope": scope}
        pruned, _ = prune(model, torch.zeros(1, *spec.image_shape), **chosen)
        yield f"ratio {ratio}, round_to {multiple}", pruned

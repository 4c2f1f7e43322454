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
from rni_pl.errors import ConfigError
from rni_pl.pruning import prune
from rni_pl.runs.checkpoint import load_model
from rni_pl.runs.spec import ModelSpec, build


@dataclass
class Family:
    """A dense network, and pruned ones that come from it by name; on the CPU, in evaluation mode.

    `path` is the checkpoint that was given to show the dense network only, if one was.
    """

    spec: ModelSpec
    dense: nn.Module
    pruned: dict[str, nn.Module] = field(default_factory=dict)
    path: str | None = None


def families(config: DictConfig) -> list[Family]:
    """The networks that the configuration asks for.

    A dense network of which no checkpoint is given is built anew, with random weights: how fast it
    is does not depend on them.

    Raises:
        RniError: a checkpoint cannot be loaded, or cannot be pruned as asked.
    """
    options, paths = plain(config.prune), as_list(plain(config)["checkpoint"])
    others = options.keys() - inspect.signature(prune).parameters.keys()
    if others:
        raise ConfigError(f"prune.{min(others)} is a setting of prune.py, not of the benchmark")
    found: dict[str, Family] = {}
    for path in paths:
        model = load_model(path, list(config.allow))
        spec: ModelSpec = model.model_spec  # type: ignore[assignment]
        key = str((spec.arch, spec.num_classes, spec.norm, spec.image_shape))
        if key not in found:
            found[key] = Family(spec, _built(spec) if spec.structure else model)
        family = found[key]
        if spec.structure and as_list(options["ratio"]):
            raise ConfigError(f"prune.ratio is for dense checkpoints; checkpoint={path} is pruned")
        if spec.structure:
            family.pruned[path] = model
        elif as_list(options["ratio"]):
            of = f"{path}, " if len(paths) > 1 else ""
            family.pruned |= {of + name: small for name, small in _pruned(model, spec, options)}
        elif family.path is None:
            family.path = path
        else:
            raise ConfigError(
                f"checkpoint={path} is the same dense network as {family.path}, and as fast; "
                "allowed: one of them, or prune.ratio=..."
            )
    return list(found.values())


def as_list(value: Any) -> list[Any]:
    """A setting that is one value or a list."""
    return value if isinstance(value, list) else [value]


def _built(spec: ModelSpec) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        return build(replace(spec, structure={})).eval()


def _pruned(
    model: nn.Module, spec: ModelSpec, options: dict[str, Any]
) -> Iterator[tuple[str, nn.Module]]:
    """What pruning makes of a dense network, for every ratio and every `round_to` asked for."""
    example, scope = torch.zeros(1, *spec.image_shape), options["scope"] or spec.scope
    for ratio, multiple in itertools.product(*(as_list(options[k]) for k in ("ratio", "round_to"))):
        chosen = {**options, "ratio": ratio, "round_to": multiple, "scope": scope}
        yield f"ratio {ratio}, round_to {multiple}", prune(model, example, **chosen)[0]

"""From the plain description of a network to the network, and which descriptions are trusted."""

import importlib
import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from rni_pl.config import arch_name
from rni_pl.errors import CheckpointError, ConfigError, PruningError, first_line
from rni_pl.modes import evaluating
from rni_pl.norm import convert_batchnorm
from rni_pl.pruning.structure import Structure, resize

# Arguments by which a builder brings trained weights.
BRINGS_WEIGHTS = frozenset(["weights", "weights_backbone", "pretrained", "checkpoint_path"])
# Arguments that make a builder fetch or read files; a checkpoint brings its own weights.
WEIGHT_ARGUMENTS = BRINGS_WEIGHTS | {"pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"}


@dataclass
class ModelSpec:
    """All that is needed to build a network again, in plain values that travel in a checkpoint.

    Attributes:
        arch: ``_target_`` (dotted name of a builder) and its keyword arguments.
        num_classes: number of logits.
        norm: ``"bn"`` or ``"sigbn"``.
        structure: sizes of the layers that pruning can change; empty where none was changed.
        born: of a network that shrank while it was trained, what it began with: ``params``,
            ``macs``, and ``widths``, norm layer -> channels; and ``gone``, the sizes of the scales
            that channels had when they went.
        image_shape: channels, height and width of an input image.
        method: name of the method it was trained with.
        scope: the scope in which this method's scores compare.
        data: data set name and the plain values it was used with.
        classes: class names in the order of the logits.
        mean: what is subtracted from each channel of an image in [0, 1].
        std: what each channel is then divided by.
    """

    arch: dict[str, Any]
    num_classes: int
    norm: str = "bn"
    structure: Structure = field(default_factory=dict)
    born: dict[str, Any] = field(default_factory=dict)
    image_shape: list[int] = field(default_factory=lambda: [3, 32, 32])
    method: str = "none"
    scope: str = "global"
    data: dict[str, Any] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)
    mean: list[float] = field(default_factory=list)
    std: list[float] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain nested containers."""
        return asdict(self)

    @property
    def arch_name(self) -> str:
        """Short name of the architecture."""
        return arch_name(self.arch)


def build(spec: ModelSpec) -> nn.Module:
    """Build the network that `spec` describes, with the current random state.

    The builder is given ``num_classes`` if it takes such an argument. With ``norm="sigbn"`` every
    BatchNorm becomes a SigBN last, so that one seed gives the same convolutions either way.

    Raises:
        ConfigError: there is no such builder, it fails, or the number of classes does not fit.
        CheckpointError: the pruned sizes do not fit the network.
    """
    arguments = {key: value for key, value in spec.arch.items() if key != "_target_"}
    builder = locate(spec.arch["_target_"])
    if _accepts(builder, "num_classes"):
        arguments.setdefault("num_classes", spec.num_classes)
    try:
        model = builder(**arguments)
    except Exception as error:  # whatever a user's own network may raise
        raise ConfigError(
            f"arch={spec.arch['_target_']} with {arguments}: {first_line(error)}"
        ) from error
    if not isinstance(model, nn.Module):
        raise ConfigError(f"arch={spec.arch['_target_']} gives no torch.nn.Module")
    return shaped(model, spec)


def shaped(model: nn.Module, spec: ModelSpec) -> nn.Module:
    """A dense network with the norm layers and the sizes that its description names.

    Raises:
        ConfigError: its norm layers cannot be converted.
        CheckpointError: the sizes are those of another network.
    """
    name = _name(model, spec)
    if spec.norm == "sigbn":
        try:
            model = convert_batchnorm(model)
        except ValueError as error:
            raise ConfigError(f"arch={name}: {first_line(error)}") from error
    try:
        model = resize(model, spec.structure)
    except (PruningError, RuntimeError, TypeError) as error:
        raise CheckpointError(f"the pruned sizes do not fit {name}: {first_line(error)}") from error
    return model


def _name(model: nn.Module, spec: ModelSpec) -> str:
    return spec.arch_name if spec.arch else type(model).__name__


def check_output(model: nn.Module, spec: ModelSpec) -> None:
    """Raise `ConfigError` unless the network maps the data's images to one logit a class."""
    name = _name(model, spec)
    like = next(model.parameters(), None)
    if like is None:
        raise ConfigError(f"arch={name} has no parameters")
    try:
        with torch.no_grad(), evaluating(model):
            logits = model(like.new_zeros(1, *spec.image_shape))
    except Exception as error:  # whatever a user's own network may raise
        raise ConfigError(
            f"arch={name} cannot take images of shape {spec.image_shape}: {first_line(error)}"
        ) from error
    if not isinstance(logits, torch.Tensor) or logits.shape != (1, spec.num_classes):
        found = (
            tuple(logits.shape[1:]) if isinstance(logits, torch.Tensor) else type(logits).__name__
        )
        raise ConfigError(
            f"arch={name} gives outputs {found}, but the data has {spec.num_classes} classes"
        )


def locate(target: str) -> Callable[..., Any]:
    """The callable with this dotted name.

    Raises:
        ConfigError: there is none.
    """
    home, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(home), name)
    except Exception as error:  # a module may raise whatever it likes
        raise ConfigError(
            f"arch._target_={target} cannot be imported: {first_line(error)}"
        ) from error
    if not callable(found):
        raise ConfigError(f"arch._target_={target} cannot be called")
    return found


def check_trusted(arch: Mapping[str, Any], allow: Collection[str] = ()) -> None:
    """Refuse a description, from a checkpoint, that could run code or fetch files.

    Trusted are the networks of `rni_pl.models`, the model builders registered with torchvision
    and timm, and the full names in `allow`.

    Raises:
        CheckpointError: the description is not trusted.
        TypeError: `allow` is one name; any part of a text is in the text.
    """
    if isinstance(allow, str):
        raise TypeError(f"allow must be a list of names, not {allow!r:.80}: allow=[NAME]")
    target = arch.get("_target_")
    if not isinstance(target, str):
        raise CheckpointError("the checkpoint names no network (arch._target_)")
    harmful = sorted(WEIGHT_ARGUMENTS & arch.keys())
    if harmful:
        raise CheckpointError(f"the checkpoint's network asks for {', '.join(harmful)}; refused")
    if target not in allow and not _registered(target, arch):
        raise CheckpointError(
            f"the checkpoint's network {target!r} is not of rni_pl.models, torchvision or timm; "
            f"if you trust it, allow it by name: allow=[{target}]"
        )


def _registered(target: str, arch: Mapping[str, Any]) -> bool:
    home, _, name = target.rpartition(".")
    if home == "rni_pl.models":
        return name in importlib.import_module(home).__all__
    if home.startswith("torchvision.models"):
        from torchvision import models

        if target == "torchvision.models.get_model":
            return arch.get("name") in models.list_models(module=models)
        known = name in models.list_models(module=models)
        return known and home in ("torchvision.models", models.get_model_builder(name).__module__)
    if target == "timm.create_model":
        name = str(arch.get("model_name"))
    elif home != "timm.models":
        return False
    try:
        import timm
    except ImportError as error:
        raise CheckpointError(f"the checkpoint's network {name!r} needs timm: {error}") from error
    return timm.is_model(name)


def _accepts(builder: Callable[..., Any], argument: str) -> bool:
    try:
        parameters = inspect.signature(builder).parameters
    except ValueError:  # some of C do not say
        return False
    return argument in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())

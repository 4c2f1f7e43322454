"""What fine-tuning takes over from the training of a network: its data, its split, itself."""

import copy
from dataclasses import replace
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities import rank_zero_warn
from torch import nn

from rni_pl.config import check, compose_group
from rni_pl.data import ClassificationData
from rni_pl.errors import ConfigError, RniError, UnknownChoiceError
from rni_pl.norm import norm_kind
from rni_pl.pruning.structure import structure_of
from rni_pl.runs import checkpoint, resume
from rni_pl.runs.spec import ModelSpec, check_output
from rni_pl.training import fitting
from rni_pl.training.module import Classifier
from rni_pl.training.recipe import Recipe


def load(config: DictConfig, recipe: Recipe, last: Path | None) -> Classifier:
    """The network of `config.checkpoint`, or of the checkpoint that a run resumes from.

    Raises:
        CheckpointError: see `rni_pl.load_model`.
    """
    if last is None and config.checkpoint is None:
        raise ConfigError("checkpoint is missing: give it as checkpoint=RUN")
    return Classifier.load_from_checkpoint(
        last or config.checkpoint, allow=list(config.allow), recipe=recipe
    )


def around(
    model: nn.Module, method: str, config: DictConfig, recipe: Recipe, data: ClassificationData
) -> Classifier:
    """A copy of a network that was given in Python, with what is known of how to build it.

    Raises:
        ConfigError: nothing in it is trained, or it does not fit the data.
    """
    known = getattr(model, "model_spec", None)
    spec = ModelSpec(
        arch=known.arch if known else {},
        num_classes=data.num_classes,
        norm=norm_kind(model),
        image_shape=list(data.image_shape),
        method=method,
        scope=config.prune.scope,
        data=fitting.plain_data_values(config),
        classes=list(data.classes),
        mean=list(data.mean),
        std=list(data.std),
    )
    check_output(model, spec)
    if spec.arch and not _builds(spec, model):
        spec = replace(spec, structure=structure_of(model))  # pruned before
        if not _builds(spec, model):
            rank_zero_warn(
                "the network was changed since it was built: its description is left out"
            )
            spec = replace(spec, arch={}, structure={})
    module = copy.deepcopy(model).cpu().float().train()
    return Classifier(spec.to_dict(), recipe, module)


def _builds(spec: ModelSpec, model: nn.Module) -> bool:
    """Whether a description builds this very network: its layers, their sizes, what it computes."""
    if not isinstance(spec.arch.get("_target_"), str):
        return False
    state = {f"model.{key}": value for key, value in model.state_dict().items()}
    try:
        built = checkpoint.build_with_weights(spec, state, "the network given")
    except RniError:
        return False
    ours = copy.deepcopy(model).cpu().float().eval()
    if str(ours) != str(built.eval()):
        return False
    x = torch.rand(2, *spec.image_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        return torch.allclose(ours(x), built(x), rtol=1e-4, atol=1e-5, equal_nan=True)


def teacher(config: DictConfig) -> nn.Module:
    """The unpruned network of a run that is resumed.

    Raises:
        ConfigError: the checkpoint has other weights now.
    """
    resume.has_same_weights(config.checkpoint, Path(config.resume))
    return checkpoint.load_model(config.checkpoint, allow=list(config.allow))


def data_of(config: DictConfig, spec: ModelSpec) -> DictConfig:
    """`config` with the data that the network was trained on, where none was chosen.

    The checkpoint gives a name and plain values; what code they configure comes from `conf/`.

    Raises:
        ConfigError: these data, or a setting given for them, are not known.
    """
    if config.data.get("_target_") is not None:
        return pixels_and_split_of(config, spec)
    choice = spec.data.get("choice")
    if not isinstance(choice, str) or choice == "???":
        raise ConfigError("the checkpoint does not say what data it was trained on: give data=NAME")
    try:
        group = compose_group("data", choice)
    except UnknownChoiceError as error:
        raise ConfigError(
            f"the network was trained on data={choice}, which is not known here: give the "
            "--config-dir that has it again, or data=NAME"
        ) from error
    _check_names(config, choice, group)
    OmegaConf.set_struct(group, False)
    stored = {k: v for k, v in spec.data.items() if k in group and not isinstance(v, dict)}
    stored = {k: v for k, v in stored.items() if k not in fitting.NOT_INHERITED}
    for key, values in (("mean", spec.mean), ("std", spec.std)):
        if stored.get(key, values) is None and values:
            stored[key] = list(values)  # measured for the network; it is not measured anew
    given = {key: value for key, value in config.data.items() if value is not None}
    merged = OmegaConf.merge(config, {})
    OmegaConf.set_struct(merged, False)
    merged.data = OmegaConf.merge(group, stored, {k: v for k, v in given.items() if k in group})
    check(merged)  # type: ignore[arg-type]
    _warn_of_more_validation(merged, spec)  # type: ignore[arg-type]
    return merged  # type: ignore[return-value]


def _check_names(config: DictConfig, choice: str, group: DictConfig) -> None:
    """Refuse what was given for data that have no such setting."""
    for key in map(str, config.data):
        if key not in group and _is_given(f"data.{key}", config):
            names = (name for name in map(str, group) if name not in fitting.NOT_INHERITED)
            raise ConfigError(
                f"data.{key} is no setting of data={choice}, which the network was trained on; "
                f"allowed: {', '.join(f'data.{name}' for name in names)}"
            )


def pixels_and_split_of(config: DictConfig, spec: ModelSpec) -> DictConfig:
    """`config` with what training made of the same data, unless it has its own.

    That is how pixels were normalised, which the weights rely on, and the validation split: with
    another, images that the network was trained on would pick the best epoch.
    """
    if spec.data.get("name") != config.data.name:
        return config
    taken = {
        key: list(values)
        for key, values in (("mean", spec.mean), ("std", spec.std))
        if values and key in config.data and not _is_given(f"data.{key}", config)
    }
    if "split_seed" in config.data:
        _warn_of_more_validation(config, spec)
        seed = spec.data.get("split_seed")
        own = config.data.split_seed != config.seed or _is_given("data.split_seed", config)
        if seed is not None and not own:
            taken["split_seed"] = seed
    return OmegaConf.merge(config, {"data": taken})  # type: ignore[return-value]


def _warn_of_more_validation(config: DictConfig, spec: ModelSpec) -> None:
    before, now = spec.data.get("val_fraction"), config.data.get("val_fraction")
    if before is not None and now is not None and now > before:
        rank_zero_warn(
            f"data.val_fraction={now}: the network was trained with {before}, so that images it "
            "was trained on validate it"
        )


def _is_given(key: str, config: DictConfig) -> bool:
    return any(item.lstrip("+").startswith(f"{key}=") for item in config.overrides)


def take_data(classifier: Classifier, config: DictConfig, data: ClassificationData) -> None:
    """Have the network's description say what data it is fine-tuned on.

    Raises:
        ConfigError: the classes are not the network's.
    """
    spec = classifier.spec
    classes = list(data.classes)
    if len(classes) != spec.num_classes or (spec.classes and spec.classes != classes):
        raise ConfigError(
            f"the checkpoint was trained for {spec.num_classes} classes "
            f"({', '.join(spec.classes[:3])}, ...), the data has {len(classes)} "
            f"({', '.join(classes[:3])}, ...)"
        )
    shape = list(data.image_shape)
    classifier.update_spec(
        data=fitting.plain_data_values(config), mean=list(data.mean), std=list(data.std)
    )
    if shape != list(spec.image_shape):
        classifier.update_spec(image_shape=shape)
        check_output(classifier.model, classifier.spec)

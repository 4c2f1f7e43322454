"""What pruning and fine-tuning take over from the training of a network: its data and its split."""

from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities import rank_zero_warn

from rni_pl import config as configuration
from rni_pl.classifier import Classifier
from rni_pl.data import ClassificationData
from rni_pl.errors import ConfigError, UnknownChoiceError
from rni_pl.spec import ModelSpec, check_output
from rni_pl.stages import runs


def with_data_of(config: DictConfig, spec: ModelSpec) -> DictConfig:
    """`config` with the data that the network was trained on, where none was chosen.

    The checkpoint gives a name and plain values; what code they configure comes from `conf/`.
    """
    if config.data.get("_target_") is not None:
        return with_pixels_and_split_of(config, spec)
    if not isinstance(spec.data.get("choice"), str) or spec.data["choice"] == "???":
        raise ConfigError("the checkpoint does not say what data it was trained on: give data=NAME")
    try:
        group = configuration.compose_group("data", spec.data["choice"])
    except UnknownChoiceError as error:
        raise ConfigError(
            f"the network was trained on data={spec.data['choice']}, which is not known here: give "
            "the --config-dir that has it again, or data=NAME"
        ) from error
    _check_names(config, spec.data["choice"], group)
    OmegaConf.set_struct(group, False)
    stored = {k: v for k, v in spec.data.items() if k in group and not isinstance(v, dict)}
    stored = {k: v for k, v in stored.items() if k not in runs.NOT_INHERITED}
    if "protocol=validation" in config.overrides and not stored.get("val_fraction"):
        stored.pop("val_fraction", None)  # asked for: the share is the data's own
    for key, values in (("mean", spec.mean), ("std", spec.std)):
        if stored.get(key, values) is None and values:
            stored[key] = list(values)  # measured for the network; it is not measured anew
    given = {key: value for key, value in config.data.items() if value is not None}
    merged = OmegaConf.merge(config, {})
    OmegaConf.set_struct(merged, False)
    merged.data = OmegaConf.merge(group, stored, {k: v for k, v in given.items() if k in group})
    configuration.check(merged)  # type: ignore[arg-type]
    _warn_of_more_validation(merged, spec)  # type: ignore[arg-type]
    return merged  # type: ignore[return-value]


def _check_names(config: DictConfig, choice: str, group: DictConfig) -> None:
    """Refuse what was given for data that have no such setting."""
    for key in map(str, config.data):
        if key not in group and _is_given(f"data.{key}", config):
            allowed = ", ".join(f"data.{n}" for n in map(str, group) if n not in runs.NOT_INHERITED)
            raise ConfigError(
                f"data.{key} is no setting of data={choice}, which the network was trained on; "
                f"allowed: {allowed}"
            )


def with_pixels_and_split_of(config: DictConfig, spec: ModelSpec) -> DictConfig:
    """`config` with what training made of the same data, unless it has its own.

    That is how pixels were normalised, which the weights rely on, and the validation split: with
    another, images that the network was trained on would pick the best epoch.
    """
    if spec.data.get("name") != config.data.name:
        return config
    return _with_split_of(_with_pixels_of(config, spec), spec)


def _with_pixels_of(config: DictConfig, spec: ModelSpec) -> DictConfig:
    taken = {
        key: list(values)
        for key, values in (("mean", spec.mean), ("std", spec.std))
        if values and key in config.data and not _is_given(f"data.{key}", config)
    }
    return OmegaConf.merge(config, {"data": taken})  # type: ignore[return-value]


def _with_split_of(config: DictConfig, spec: ModelSpec) -> DictConfig:
    if "split_seed" not in config.data:
        return config
    _warn_of_more_validation(config, spec)
    seed = spec.data.get("split_seed")
    named = _is_given("data.split_seed", config)
    if named or seed is None or config.data.split_seed != config.seed:  # another was chosen
        return config
    return OmegaConf.merge(config, {"data": {"split_seed": seed}})  # type: ignore[return-value]


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
        data=runs.plain_data_values(config), mean=list(data.mean), std=list(data.std)
    )
    if shape != list(spec.image_shape):
        classifier.update_spec(image_shape=shape)
        check_output(classifier.model, classifier.spec)

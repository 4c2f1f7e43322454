"""The command `rni_pl.sensitivity`: how much accuracy each layer of a run's network is worth."""

import itertools
from collections.abc import Iterable
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from rni_pl.callbacks.tensorboard import sensitivity_image
from rni_pl.errors import ConfigError
from rni_pl.modes import evaluating
from rni_pl.progress import track
from rni_pl.pruning.sensitivity import Sensitivity, sensitivity
from rni_pl.runs import checkpoint
from rni_pl.runs.files import SENSITIVITY, write_json
from rni_pl.training import fitting, inherit
from rni_pl.training.recipe import Recipe


def run(config: DictConfig) -> None:
    """Measure as configured; print the table, and the ratios that `max_drop` allows.

    The run's directory gets ``sensitivity.json`` and, for TensorBoard, a picture.
    """
    classifier = inherit.load(config, Recipe(), None)
    config = inherit.data_of(config, classifier.spec)
    data = fitting.make_data(config)
    inherit.take_data(classifier, config, data)
    loader = data.loader(data.val, data.eval_batch_size)
    batches = list(itertools.islice(loader, max(1, round(config.share * len(loader)))))

    def accuracy(model: nn.Module) -> float:
        right = total = 0
        with torch.inference_mode(), evaluating(model):
            for images, labels in batches:
                right += int((model(images).argmax(1) == labels).sum())
                total += len(labels)
        return right / total

    def watch(names: Iterable[str]) -> Iterable[str]:
        return track(names, "layers")

    example = torch.zeros(1, *classifier.spec.image_shape)
    found = sensitivity(
        classifier.model, example, accuracy, list(config.ratios), watch, coupled=config.coupled
    )
    print(found)
    allowed = {name: ratio for name, ratio in found.ratios(config.max_drop).items() if ratio}
    pairs = ",".join(f"{name}: {ratio:g}" for name, ratio in allowed.items())
    print(f"at most {config.max_drop:.2%} lost by each layer: 'prune.ratios={{{pairs}}}'")
    _keep(found, allowed, _folder(config.checkpoint))


def _folder(given: str) -> Path:
    """The run directory of a checkpoint."""
    place = checkpoint.locate(given).parent
    return place.parent if place.name == "checkpoints" else place


def _keep(found: Sensitivity, allowed: dict[str, float], folder: Path) -> None:
    try:
        write_json(
            {"whole": found.whole, "accuracy": found.accuracy, "ratios": allowed},
            folder / SENSITIVITY,
        )
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written to: {error.strerror}") from error
    curves = {name: list(curve.items()) for name, curve in found.accuracy.items()}
    with SummaryWriter(str(folder)) as writer:
        writer.add_image(
            "sensitivity", sensitivity_image(curves, found.whole), 0, dataformats="HWC"
        )

"""The paper's workflow as two functions, on the code path of the commands."""

import contextlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from pytorch_lightning.utilities import rank_zero_warn
from torch import nn

from rni_pl import config as configuration
from rni_pl.errors import ConfigError
from rni_pl.regularisers import Regulariser
from rni_pl.runs import directory
from rni_pl.runs.spec import ModelSpec
from rni_pl.runs.summary import Outcome
from rni_pl.training import fitting, inherit, launch


def train(
    dataset: str = "cifar10",
    arch: str = "resnet56",
    method: str = "rni",
    reg_weight: float | None = None,
    b: float | None = None,
    epochs: int = 160,
    lr: float | None = None,
    batch_size: int = 64,
    seed: int = 0,
    device: str = "auto",
    run_dir: str | Path | None = None,
    overrides: tuple[str, ...] | list[str] = (),
    shrink: int = 0,
) -> tuple[nn.Module, dict[str, Any]]:
    """Train a network with a sparsity regulariser.

    Args:
        dataset: a name of the `data` group of configurations (``"cifar10"``, ``"digits"``, ...).
        arch: a name of the `arch` group (``"resnet56"``, ``"vgg16"``, ...).
        method: a name of the `method` group (``"rni"``, ``"l1"``, ``"ucs"``, ``"polarization"``).
        reg_weight: weight of the penalty; None: the paper's for VGG-16 and ResNet-56, and the
            latter's for all other networks.
        b: shift of RNI's gradient bump (the paper's b); None: the paper's.
        epochs: number of epochs.
        lr: learning rate; None: the optimiser's own, 0.1 of SGD.
        batch_size: images a step.
        seed: of weights, order, augmentation and validation split.
        device: ``"cpu"``, ``"gpu"``, ``"auto"`` or any other accelerator of Lightning's.
        run_dir: where to keep checkpoints, logs and summary; None keeps nothing. One that holds a
            run is refused, unless ``"overwrite=true"`` is among the overrides.
        overrides: further settings as on the command line, such as ``"data.root=/data"``.
        shrink: every so many epochs, channels that have receded go for good; 0: never. For the
            other settings of it give ``"shrink.below=0.01"`` and the like.

    Returns:
        The network of the best epoch, on the CPU in evaluation mode, and logs: ``test_acc`` and
        ``val_acc`` (fractions, one for each epoch that was validated: all of them by default),
        ``epoch`` (which these were, counted from 0), ``best_epoch`` (picked on the validation
        split, or on the test set with ``overrides=["protocol=paper"]``) and ``summary``.

    Raises:
        RniError: a value is unknown or out of range, or the data is not there.
        TypeError: `overrides` is a text and no list of them.
    """
    settings = [f"arch={arch}", f"method={method}"]
    settings += _shared(dataset, epochs, lr, batch_size, seed, device)
    given = {"reg_weight": reg_weight, "shift": b}
    settings += [f"shrink.every={shrink}"] if shrink else []
    settings += [f"method.{key}={value}" for key, value in given.items() if value is not None]
    config = _configure("train", settings, overrides)
    with _place(run_dir, config) as place:
        return _result(launch.run("train", config, place, watch_test=True))


def prune_finetune(
    model: nn.Module,
    dataset: str = "cifar10",
    method: str | None = None,
    prune_pc: float = 0.5,
    epochs: int = 160,
    lr: float | None = None,
    batch_size: int = 64,
    seed: int = 0,
    device: str = "auto",
    run_dir: str | Path | None = None,
    overrides: tuple[str, ...] | list[str] = (),
) -> tuple[nn.Module, dict[str, Any]]:
    """Remove the share `prune_pc` of a network's channels, in [0, 1), and fine-tune what is left.

    `model` (as `train` or `load_model` return it, or any network for this data) is not changed;
    `method` decides the scope, global or local; None: the method that it was trained with, where
    the network says so (as those of `train` and `load_model` do), otherwise ``"rni"``. For the
    rest, results and errors included, see `train`. Where `model` does not say how it is built, what
    is kept in `run_dir` is loaded with ``load_model(run_dir, model=...)``.

    Raises:
        TypeError: `model` is no network, or `overrides` a text and no list of them.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a network, not {model!r:.80}; load_model(path) reads one")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError("the network has no parameter that is trained")
    settings = [f"prune.ratio={prune_pc}", "checkpoint=null"]
    settings += _shared(dataset, epochs, lr, batch_size, seed, device)
    config = _configure("prune", settings, overrides)
    known = getattr(model, "model_spec", None)
    if known:
        config = inherit.pixels_and_split_of(config, known)
    method, scope = _method_and_scope(known, method)
    config.prune.scope = config.prune.scope or scope
    if run_dir is not None and not (known and known.arch):
        rank_zero_warn(
            "checkpoints of this run do not say how to build the network: load them with "
            "rni_pl.load_model(path, model=THE_UNPRUNED_NETWORK)"
        )
    options = {"watch_test": True, "model": model, "method": method}
    with _place(run_dir, config) as place:
        return _result(launch.run("prune", config, place, **options))


def _configure(
    command: str, settings: list[str], overrides: tuple[str, ...] | list[str]
) -> DictConfig:
    if isinstance(overrides, str):
        raise TypeError(f"overrides must be a list, not {overrides!r:.80}: overrides=[KEY=VALUE]")
    for item in overrides:
        if re.match(r"[+~]*hydra\b(?!\.searchpath)", item):
            raise ConfigError(f"{item} is for the commands; in Python, run_dir=... keeps a run")
        if re.match(r"\+*(launch|hparams_search)=(?!null$)", item):
            raise ConfigError(
                f"{item} is for the sweeps (-m) of the commands; call it for each job"
            )
    config = configuration.compose_config(command, [*settings, *overrides])
    if config.resume is not None:
        raise ConfigError(
            f"resume={config.resume} is for the commands: python {command}.py resume=DIR goes on"
        )
    return config


def _method_and_scope(known: ModelSpec | None, method: str | None) -> tuple[str, str]:
    """What a network was trained with, where that is known; else the method and its scope."""
    if method is None and known and known.method != "none":
        return known.method, known.scope
    method = method or "rni"
    group = configuration.compose_config("train", [f"method={method}"], check_it=False).method
    return method, fitting.make(group, "method", Regulariser).scope


def _shared(
    dataset: str, epochs: int, lr: float | None, batch_size: int, seed: int, device: str
) -> list[str]:
    settings = [
        f"data={dataset}",
        f"data.batch_size={batch_size}",
        f"trainer.max_epochs={epochs}",
        f"seed={seed}",
    ]
    if lr is not None:
        settings.append(f"optimizer.lr={lr}")
    if device != "auto":  # what `trainer=...` among the overrides says stays
        settings.append(f"trainer.accelerator={'gpu' if device == 'cuda' else device}")
    return settings


@contextlib.contextmanager
def _place(run_dir: str | Path | None, config: DictConfig) -> Iterator[Path]:
    """The directory of a run, which holds none; a temporary one where nothing is kept."""
    if run_dir is None:
        with tempfile.TemporaryDirectory(prefix="rni_pl_") as folder:
            yield Path(folder)
        return
    place = Path(run_dir).expanduser()
    if not config.overwrite:
        directory.refuse_a_run_in(place)
    yield place


def _result(outcome: Outcome) -> tuple[nn.Module, dict[str, Any]]:
    record = outcome.record
    return outcome.model, {
        "test_acc": record.test_acc or record.val_acc,
        "val_acc": record.val_acc,
        "epoch": record.epoch,
        "best_epoch": record.best_epoch,
        "summary": outcome.summary,
    }

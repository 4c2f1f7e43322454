"""The paper's workflow as two functions, on the code path of the commands."""

import contextlib
import copy
import re
import tempfile
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from pytorch_lightning.utilities import rank_zero_warn
from torch import nn

from rni_pl import config as configuration
from rni_pl.checkpoint import build_with_weights
from rni_pl.classifier import Classifier
from rni_pl.errors import ConfigError, RniError
from rni_pl.norm import norm_kind
from rni_pl.regularisers import Regulariser
from rni_pl.spec import ModelSpec, check_output
from rni_pl.stages import dispatch, inheriting, launch, runs
from rni_pl.stages.finetuning import GIVEN
from rni_pl.stages.outcome import Outcome
from rni_pl.stages.runs import plain_data_values
from rni_pl.stages.sharing import between_jobs
from rni_pl.structure import structure_of

# Arguments of `train` that are settings of its method, and what a configuration calls them.
METHOD_ARGUMENTS = {"reg_weight": "reg_weight", "b": "shift"}


def train(
    dataset: str = "cifar10",
    arch: str = "resnet56",
    method: str = "rni",
    reg_weight: float | None = None,
    b: float | None = None,
    epochs: int = 160,
    lr: float = 0.1,
    batch_size: int = 64,
    seed: int = 0,
    device: str = "auto",
    run_dir: str | Path | None = None,
    overrides: tuple[str, ...] | list[str] = (),
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
        lr: initial learning rate.
        batch_size: images a step.
        seed: of weights, order, augmentation and validation split.
        device: ``"cpu"``, ``"gpu"``, ``"auto"`` or any other accelerator of Lightning's.
        run_dir: where to keep checkpoints, logs and summary; None keeps nothing.
        overrides: further settings as on the command line, such as ``"data.root=/data"``.

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
    config = _configure("train", settings, overrides)
    given = {"reg_weight": reg_weight, "b": b}
    if chosen := {name: value for name, value in given.items() if value is not None}:
        settings += _of_method(method, config.method, chosen)
        config = _configure("train", settings, overrides)
    with _directory(run_dir) as directory:
        return _result(dispatch.run("train", config, Path(directory), watch_test=True))


def prune_finetune(
    model: nn.Module,
    dataset: str = "cifar10",
    method: str | None = None,
    prune_pc: float = 0.5,
    epochs: int = 160,
    lr: float = 0.1,
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
    settings = [f"prune.ratio={prune_pc}", f"checkpoint={GIVEN}"]
    settings += _shared(dataset, epochs, lr, batch_size, seed, device)
    config = _configure("prune", settings, overrides)
    if known := getattr(model, "model_spec", None):
        config = inheriting.with_pixels_and_split_of(config, known)
    method, scope = _method_and_scope(model, method)
    config.prune.scope = config.prune.scope or scope
    # The data are loaded once; where other processes run the stage, they load their own.
    once = between_jobs() if launch.processes(config.trainer) <= 1 else contextlib.nullcontext()
    with once, _directory(run_dir) as directory:
        classifier = _wrap(model, method, config)
        if run_dir is not None and not classifier.spec.arch:
            rank_zero_warn(
                "checkpoints of this run do not say how to build the network: load them with "
                "rni_pl.load_model(path, model=THE_UNPRUNED_NETWORK)"
            )
        options = {"watch_test": True, "classifier": classifier}
        return _result(dispatch.run("prune", config, Path(directory), **options))


def _configure(
    command: str, settings: list[str], overrides: tuple[str, ...] | list[str]
) -> DictConfig:
    if isinstance(overrides, str):
        raise TypeError(f"overrides must be a list, not {overrides!r:.80}: overrides=[KEY=VALUE]")
    for item in overrides:
        if re.match(r"[+~]*hydra\b(?!\.searchpath)", item):
            raise ConfigError(f"{item} is for the commands; in Python, run_dir=... keeps a run")
        if re.match(r"\+*(launch|search)=(?!null$)", item):
            raise ConfigError(
                f"{item} is for the sweeps (-m) of the commands; call it for each job"
            )
    config = configuration.compose_config(command, [*settings, *overrides])
    for item in overrides:
        if item.lstrip("+").startswith(("existing=continue", "resume=")):
            raise ConfigError(
                f"{item} is for the commands: a run of {command}.py goes on with "
                f"python {command}.py {item}"
            )
    return config


def _of_method(method: str, known: DictConfig, chosen: dict[str, float]) -> list[str]:
    """Arguments of `train` as settings of the method, whose configuration is `known`."""
    for argument in chosen:
        if METHOD_ARGUMENTS[argument] not in known:
            ours = [name for name, setting in METHOD_ARGUMENTS.items() if setting in known]
            raise ConfigError(
                f"{argument} is not a setting of method={method}; its settings: "
                f"{', '.join(ours) or 'none'}"
            )
    return [f"method.{METHOD_ARGUMENTS[name]}={value}" for name, value in chosen.items()]


def _method_and_scope(model: nn.Module, method: str | None) -> tuple[str, str]:
    """What a network was trained with, as far as it says, or the method given and its scope."""
    known = getattr(model, "model_spec", None)
    if method is None and known and known.method != "none":
        return known.method, known.scope
    method = method or "rni"
    regulariser = runs.make(configuration.compose_group("method", method), "method", Regulariser)
    return method, regulariser.scope


def _wrap(model: nn.Module, method: str, config: Any) -> Classifier:
    """A copy of the network under training, with what is known of how to build it."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError("the network has no parameter that is trained")
    known = getattr(model, "model_spec", None)
    data = runs.make_data(config)
    spec = ModelSpec(
        arch=known.arch if known else {},
        num_classes=data.num_classes,
        norm=norm_kind(model),
        structure=structure_of(model),
        image_shape=list(data.image_shape),
        method=method,
        scope=config.prune.scope,
        data=plain_data_values(config),
        classes=list(data.classes),
        mean=list(data.mean),
        std=list(data.std),
    )
    check_output(model, spec)
    if spec.arch and not _builds(spec, model):
        rank_zero_warn("the network was changed since it was built: its description is left out")
        spec.arch = {}
    module = copy.deepcopy(model).cpu().float().train()
    return Classifier(spec.to_dict(), configuration.plain(config.optimizer), module=module)


def _builds(spec: ModelSpec, model: nn.Module) -> bool:
    """Whether a description builds this very network: its layers, their sizes, what it computes."""
    if not isinstance(spec.arch.get("_target_"), str):
        return False
    state = {f"model.{key}": value for key, value in model.state_dict().items()}
    try:
        built = build_with_weights(spec, state, "the network given")
    except RniError:
        return False
    ours = copy.deepcopy(model).cpu().float().eval()
    if str(ours) != str(built.eval()):
        return False
    x = torch.rand(2, *spec.image_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        return torch.allclose(ours(x), built(x), rtol=1e-4, atol=1e-5, equal_nan=True)


def _shared(
    dataset: str, epochs: int, lr: float, batch_size: int, seed: int, device: str
) -> list[str]:
    settings = [
        f"data={dataset}",
        f"data.batch_size={batch_size}",
        f"optimizer.lr={lr}",
        f"trainer.max_epochs={epochs}",
        f"seed={seed}",
    ]
    if device != "auto":  # what `trainer=...` among the overrides says stays
        settings.append(f"trainer.accelerator={'gpu' if device == 'cuda' else device}")
    return settings


def _directory(run_dir: str | Path | None) -> Any:
    if run_dir is None:
        return tempfile.TemporaryDirectory(prefix="rni_pl_")
    return contextlib.nullcontext(run_dir)


def _result(outcome: Outcome) -> tuple[nn.Module, dict[str, Any]]:
    record = outcome.record
    return outcome.model, {
        "test_acc": record.test_acc or record.val_acc,
        "val_acc": record.val_acc,
        "epoch": record.epoch,
        "best_epoch": record.best_epoch,
        "summary": outcome.summary,
    }

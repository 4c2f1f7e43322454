"""Reading checkpoints: what may be in one, and the network it holds."""

import copy
import errno
import hashlib
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rni_pl.errors import CheckpointError, ConfigError, DamagedError, first_line
from rni_pl.runs.files import BEST
from rni_pl.runs.spec import ModelSpec, build, check_trusted, shaped


def load_model(
    path: str | Path, allow: Collection[str] = (), model: nn.Module | None = None
) -> nn.Module:
    """The network of any checkpoint of ours, dense or pruned, in evaluation mode on the CPU.

    Args:
        path: a checkpoint file, or a run directory (its best epoch is taken).
        allow: full names of further network builders (``"mypackage.nets.MyNet"``) that the
            checkpoint may call; those of `rni_pl.models`, torchvision and timm always may.
        model: the unpruned network, freshly built, where a checkpoint does not say how to build it
            (it was given to `rni_pl.prune_finetune`); a copy gets its sizes and weights.

    Raises:
        CheckpointError: missing, damaged, foreign, it asks for code that is not allowed, or `model`
            is another network.
        TypeError: `model` is no network, or `allow` a text and no list of them.
    """
    if model is not None and not isinstance(model, nn.Module):
        raise TypeError(f"model must be a network, not {model!r:.80}")
    # What it says of building a network does not matter where one is given.
    checkpoint = read(path, allow) if model is None else read_own(path)
    spec = spec_of(checkpoint)
    return build_with_weights(spec, checkpoint["state_dict"], path, model).eval()


def locate(path: str | Path) -> Path:
    """The checkpoint file meant by `path`: itself, or the best epoch of a run directory."""
    path = Path(path).expanduser()
    if path.is_dir():
        found = path / BEST
        if not found.is_file():
            raise CheckpointError(f"checkpoint={path} holds no {BEST}")
        return found
    if not path.is_file():
        raise CheckpointError(f"checkpoint={path} does not exist")
    return path


def read(path: str | Path, allow: Collection[str] = ()) -> dict[str, Any]:
    """The checkpoint's contents, once it is certain that they hold only data.

    Raises:
        CheckpointError: see `load_model`.
    """
    file = locate(path)
    checkpoint = read_plain(file)
    check(checkpoint, file, allow)
    return checkpoint


def read_own(path: str | Path) -> dict[str, Any]:
    """The contents of a checkpoint of ours, whatever network it names."""
    file = locate(path)
    contents = read_plain(file)
    _check_ours(contents, file)
    return contents


def read_weights(path: str | Path) -> dict[str, Any]:
    """The network's weights in a checkpoint of ours, without the description of the network."""
    return weights_of(read_own(path)["state_dict"])


def digest(path: str | Path) -> str:
    """What tells a checkpoint's weights from all others, wherever the file is.

    Raises:
        CheckpointError: missing, damaged or foreign.
    """
    found = hashlib.sha256()
    for name, value in sorted(read_weights(path).items()):
        if not isinstance(value, Tensor):  # what layers keep beside tensors
            found.update(f"{name} {value!r}".encode())
            continue
        found.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        found.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def read_scale_sizes(path: str | Path) -> dict[str, Tensor]:
    """Importance of every channel by norm layer, as `norm.scale_sizes` has it, from the file only.

    No network is built, so that this reads the checkpoints of any network, trusted or not.

    Raises:
        CheckpointError: missing, damaged, foreign, or no norm layer with finite scales in it.
    """
    contents = read_own(path)
    try:
        sigmoid = contents["hyper_parameters"]["spec"]["norm"] == "sigbn"
        weights = weights_of(contents["state_dict"])
        gammas = {name: weights[f"{name}.weight"].float() for name in contents["scaled"]}
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"checkpoint={path} was not written by rni_pl") from error
    sizes = {n: torch.sigmoid(g) if sigmoid else g.abs() for n, g in gammas.items()}
    if not sizes or not all(bool(torch.isfinite(values).all()) for values in sizes.values()):
        raise CheckpointError(f"checkpoint={path} holds no finite scales of norm layers")
    return sizes


def read_plain(file: Path, key: str = "checkpoint") -> Any:
    """What `torch.load` finds in a file of plain data; `key` is what messages call it.

    Raises:
        DamagedError: the file is not what was written.
        CheckpointError: it is whole and holds more than plain data, or it cannot be read now.
    """
    try:
        archive = zipfile.is_zipfile(file)  # all but very old files of others
        if archive:
            _check_archive(file, key)
        return torch.load(file, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        if archive:
            raise CheckpointError(f"{key}={file} holds more than plain data: refused") from error
        raise DamagedError(
            f"{key}={file} is damaged, or holds more than plain data and was refused"
        ) from error
    except Exception as error:  # damaged bytes make torch raise whatever they meet first
        refused = isinstance(error, OSError) and error.errno != errno.EINVAL  # which torch makes up
        if refused or isinstance(error, MemoryError):  # its bytes may be sound
            why = first_line(error) or type(error).__name__
            raise CheckpointError(f"{key}={file} cannot be read: {why}") from error
        raise DamagedError(
            f"{key}={file} is damaged, or no checkpoint: {first_line(error)}"
        ) from error


def _check_archive(file: Path, key: str) -> None:
    """Compare checksums, which torch itself does not; in a time that the file's size bounds."""
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
        if packed or sum(entry.file_size for entry in entries) > file.stat().st_size:
            raise DamagedError(f"{key}={file} is damaged: it claims to hold more than its bytes")
        damaged = archive.testzip()
    if damaged is not None:
        raise DamagedError(f"{key}={file} is damaged: wrong checksum of {damaged}")


def weights_of(state: Mapping[str, Any]) -> dict[str, Any]:
    """The network's own state dict: Lightning keeps it under ``model.``."""
    return {k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")}


def check(checkpoint: Any, file: str | Path, allow: Collection[str] = ()) -> None:
    """Raise `CheckpointError` unless this is a checkpoint of ours that names no other code."""
    _check_ours(checkpoint, file)
    spec = spec_of(checkpoint)
    if not spec.arch:
        raise CheckpointError(
            f"checkpoint={file} does not say how to build its network, which was given in Python: "
            "rni_pl.load_model(path, model=THE_UNPRUNED_NETWORK)"
        )
    check_trusted(spec.arch, allow)


def _check_ours(checkpoint: Any, file: str | Path) -> None:
    """Raise `CheckpointError` unless it has what our runs write, and nothing to call."""
    hyper = checkpoint.get("hyper_parameters") if isinstance(checkpoint, dict) else None
    if not isinstance(hyper, dict) or not isinstance(hyper.get("spec"), dict):
        raise CheckpointError(
            f"checkpoint={file} was not written by rni_pl; where it holds trained weights, "
            f"python train.py init={file} trainer.max_epochs=0 arch=... data=... makes a run of "
            "them, which can be pruned"
        )
    named = sorted(key for key in hyper if str(key).startswith("_"))
    if named:  # Lightning would import and call what _instantiator names
        raise CheckpointError(f"checkpoint={file} names code to run ({', '.join(named)}); refused")
    if not isinstance(checkpoint.get("state_dict"), dict):
        raise CheckpointError(f"checkpoint={file} holds no weights")


def spec_of(checkpoint: Mapping[str, Any]) -> ModelSpec:
    """The description of the network in a checkpoint."""
    try:
        spec = ModelSpec(**checkpoint["hyper_parameters"]["spec"])
    except TypeError as error:
        raise CheckpointError(f"the checkpoint's description of its network: {error}") from error
    if not isinstance(spec.arch, dict) or not isinstance(spec.structure, dict):
        raise CheckpointError("the checkpoint's description of its network is damaged")
    return spec


def load_weights(model: nn.Module, weights: Mapping[str, Any]) -> None:
    """`load_state_dict` of a plain mapping.

    Some networks (torchvision's MNASNet) ask for the versions of their layers, which state dicts of
    their own carry beside the weights.
    """
    state = OrderedDict(weights)
    state._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]
    model.load_state_dict(state)


def build_with_weights(
    spec: ModelSpec, state: Mapping[str, Any], path: str | Path, model: nn.Module | None = None
) -> nn.Module:
    """Build the network, or shape a copy of `model`, and load a Lightning checkpoint's weights.

    What the checkpoint says of building is not trusted, and dropped, where a network is given.
    """
    with torch.random.fork_rng(devices=[]):  # building draws weights that are not used
        try:
            if model is None:
                model = build(spec)
            else:
                spec = replace(spec, arch={})
                model = shaped(copy.deepcopy(model).cpu().float(), spec)
        except ConfigError as error:
            raise CheckpointError(f"checkpoint={path}: {error}") from error
    try:
        load_weights(model, weights_of(state))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"checkpoint={path}: the weights do not fit: {reason}") from error
    model.model_spec = spec  # type: ignore[assignment]  # says what the logits and pixels mean
    return model

"""Exporting a checkpoint: fold, trace, write, and compare what was written with the checkpoint."""

import warnings
from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

import rni_pl
from rni_pl.errors import ExportError, PruningError
from rni_pl.export.aligning import align
from rni_pl.export.folding import fold
from rni_pl.export.formats import FORMATS, Run, program_of
from rni_pl.progress import busy
from rni_pl.pruning.trace import trace
from rni_pl.runs import files
from rni_pl.runs.checkpoint import load_model
from rni_pl.runs.spec import ModelSpec

TOLERANCE = 1e-4  # largest difference from the checkpoint's logits, against their size from 1 on
BATCHES = (1, 7)  # sizes for which files are compared
MULTIPLE = 4  # ONNX Runtime's fast convolutions read channels in fours
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def run(config: DictConfig) -> None:
    """The command: export as configured and say what came of it."""
    output = Path(config.output)
    with busy(f"writing {output}"):
        difference = export(config.checkpoint, output, config.align, list(config.allow))
    size = output.stat().st_size / 1e6
    batches = " and ".join(map(str, BATCHES))
    print(
        f"{output}: {size:.1f} MB; logits differ from the checkpoint's by {difference:.1e} at most "
        f"(batches of {batches})"
    )


def export(
    checkpoint: str | Path,
    output: str | Path,
    multiple: int = MULTIPLE,
    allow: Collection[str] = (),
) -> float:
    """Write the network of a checkpoint to one file that needs nothing of this package.

    The file maps normalised float32 images ``images`` (batch, 3, H, W) to ``logits`` (batch,
    classes), for any batch size. Norm layers are folded into the convolutions, and pruned layers
    filled up with zero channels. The metadata says what the pixels and the logits mean. The file is
    written whole, and only if its logits are within `TOLERANCE` of the checkpoint's, times the
    largest of them where that is over 1; otherwise one that was there before stays.

    Args:
        checkpoint: a checkpoint file, or a run directory.
        output: a path that ends in ``.onnx`` or ``.pt2``.
        multiple: pruned layers get widths that are multiples of this; 1: they stay as they are.
        allow: see `rni_pl.load_model`.

    Returns:
        The largest difference between a logit of the file and one of the checkpoint.

    Raises:
        CheckpointError: see `rni_pl.load_model`.
        ExportError: the path is not allowed, a package is missing, the network cannot be traced,
            or the file computes something else.
    """
    path = Path(output)
    format_ = FORMATS[check_output(path)]
    model = load_model(checkpoint, allow)
    spec: ModelSpec = model.model_spec  # type: ignore[assignment]
    program = program_of(deployable(model, spec.image_shape, multiple), spec.image_shape)
    with files.whole(path) as temporary:
        format_.write(program, metadata_of(spec), temporary)
        difference, allowed = largest_difference(model, format_.load(temporary), spec)
        if not difference < allowed:  # NaN and infinity are no success either
            raise ExportError(
                f"output={path} was not written: its logits would differ from the checkpoint's by "
                f"{difference:.1e}, over {allowed:.0e}"
            )
    return difference


def check_output(path: Path) -> str:
    """The suffix of a path that can be written to."""
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        allowed = " or ".join(FORMATS)
        raise ExportError(f"output={path} is not allowed; allowed: {allowed} at the end")
    if path.is_dir():
        raise ExportError(f"output={path} cannot be written: it is a directory")
    if not path.parent.is_dir():
        raise ExportError(f"output={path} cannot be written: {path.parent} is not a folder")
    if suffix == ".onnx":
        check_packages(f"output={path}")
    return suffix


def check_packages(what: str) -> None:
    """Refuse `what`, a setting, where a package that ONNX takes is not installed."""
    missing = [package for package in ONNX_PACKAGES if find_spec(package) is None]
    if missing:
        raise ExportError(f"{what} needs {', '.join(missing)}: pip install 'rni_pl[onnx]'")


def deployable(model: nn.Module, image_shape: list[int], multiple: int = MULTIPLE) -> nn.Module:
    """The network as it is exported: norm layers folded, widths filled up to a multiple.

    With a warning where the network does not allow one or the other.
    """
    example = torch.randn(1, *image_shape, generator=torch.Generator().manual_seed(0))
    try:
        folded = fold(model, example)
        graph = trace(model, example)
    except PruningError as error:
        warnings.warn(f"the norm layers stay as they are: {error}", stacklevel=2)
        return model
    aligned = align(folded, graph, multiple)
    if not _same(aligned, folded, example):
        warnings.warn("widths are fixed in the network's code and stay as they are", stacklevel=2)
        return folded
    return aligned


@torch.no_grad()
def _same(aligned: nn.Module, folded: nn.Module, example: Tensor) -> bool:
    """Whether new channels changed nothing."""
    try:
        difference, allowed = _difference(aligned(example), folded(example))
    except Exception:  # a view with a width in it, or a check of the width, raising what it likes
        return False
    return difference < allowed


def _difference(logits: Tensor, expected: Tensor) -> tuple[float, float]:
    """The largest between two logits, and how large it may be: float32 rounds by size."""
    allowed = TOLERANCE * expected.abs().max().clamp(min=1)
    return float((logits - expected).abs().max()), float(allowed)


def metadata_of(spec: ModelSpec) -> dict[str, Any]:
    """What the pixels and the logits mean, in plain values, as far as the checkpoint says.

    ``image_size`` is height and width; ``mean`` is subtracted from each channel of pixels in
    [0, 1], which is then divided by ``std``; ``classes`` are in the order of the logits.
    """
    known = {
        "arch": spec.arch_name,
        "dataset": spec.data.get("name"),
        "method": spec.method,
        "image_size": spec.image_shape[1:],
        "mean": spec.mean,
        "std": spec.std,
        "classes": spec.classes,
        "rni_pl_version": rni_pl.__version__,
    }
    return {key: value for key, value in known.items() if value}


@torch.no_grad()
def largest_difference(model: nn.Module, run: Run, spec: ModelSpec) -> tuple[float, float]:
    """Between logits of `model` and `run`, on normalised random pixels; and what is allowed."""
    generator = torch.Generator().manual_seed(0)
    mean, std = (torch.tensor(c).view(-1, 1, 1) for c in (spec.mean or [0.0], spec.std or [1.0]))
    shapes = [(batch, *spec.image_shape) for batch in BATCHES]
    images = [(torch.rand(shape, generator=generator) - mean) / std for shape in shapes]
    logits, expected = (torch.cat([net(batch) for batch in images]) for net in (run, model))
    return _difference(logits, expected)

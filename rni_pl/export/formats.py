"""The two file formats: how each is written, and how it is run again to see that it is right."""

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from rni_pl.errors import ExportError, first_line

INPUT, OUTPUT = "images", "logits"
METADATA_FILE = "metadata.json"  # within a pt2 archive

Metadata = Mapping[str, Any]
Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Format:
    """`write(program, metadata, path)` makes a file, `load(path)` what maps images to logits."""

    write: Callable[[ExportedProgram, Metadata, Path], None]
    load: Callable[[Path], Run]


def program_of(model: nn.Module, image_shape: list[int]) -> ExportedProgram:
    """The network as one graph, for batches of any size.

    Raises:
        ExportError: `torch.export` cannot trace it, or only for one batch size.
    """
    example = torch.zeros(2, *image_shape)
    batch = torch.export.Dim("batch", min=1)
    try:
        with quiet():
            program = torch.export.export(model.eval(), (example,), dynamic_shapes=({0: batch},))
    except Exception as error:  # whatever a user's own network may raise while it is traced
        name = type(model).__name__
        raise ExportError(f"torch.export cannot trace {name}: {first_line(error)}") from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # the paths of this machine concern nobody else
    return program


def write_pt2(program: ExportedProgram, metadata: Metadata, path: Path) -> None:
    """Write a `torch.export` archive; the metadata is its extra file ``metadata.json``."""
    with quiet():
        torch.export.save(program, path, extra_files={METADATA_FILE: json.dumps(metadata)})


def load_pt2(path: Path) -> Run:
    """What a pt2 file computes."""
    return torch.export.load(path).module()


def write_onnx(program: ExportedProgram, metadata: Metadata, path: Path) -> None:
    """Write an ONNX file; each entry of the metadata is a property, in JSON unless it is text.

    Raises:
        ExportError: the network has an operation that ONNX cannot express.
    """
    try:
        with quiet():
            onnx: Any = torch.onnx.export(
                program, dynamo=True, input_names=[INPUT], output_names=[OUTPUT],
                dynamic_shapes=({0: "batch"},), verbose=False,
            )  # fmt: skip
    except torch.onnx.OnnxExporterError as error:
        raise ExportError(f"torch.onnx cannot export it: {first_line(error)}") from error
    for key, value in metadata.items():
        onnx.model.metadata_props[key] = value if isinstance(value, str) else json.dumps(value)
    onnx.save(path)


def load_onnx(path: Path) -> Run:
    """What an ONNX file computes, by ONNX Runtime on the CPU."""
    session = onnx_session(path)
    return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])


def onnx_session(path: Path, threads: int = 0) -> Any:
    """An inference session on the CPU; 0 threads: as many as it chooses."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Its threads do not go on spinning after a run, in the way of whatever runs next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporters' remarks on their own workings to themselves."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


FORMATS = {".onnx": Format(write_onnx, load_onnx), ".pt2": Format(write_pt2, load_pt2)}

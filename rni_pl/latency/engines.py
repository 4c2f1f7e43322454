"""The engines that a network is timed on."""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rni_pl.export.exporting import MULTIPLE, check_packages, deployable
from rni_pl.export.formats import INPUT, onnx_session, program_of, quiet, write_onnx
from rni_pl.latency.timing import Call, Engine, eager


def compiled(model: nn.Module, images: Tensor) -> Call:
    """PyTorch, through `torch.compile`, as one graph."""
    fast: Any = torch.compile(model, fullgraph=True, dynamic=False)
    call = eager(fast, images)
    with quiet():
        call()  # compiles
    return call


def onnx(model: nn.Module, images: Tensor, align: int = MULTIPLE) -> Call:
    """ONNX Runtime, on as many threads as PyTorch, with the file that `rni_pl.export` writes."""
    check_packages("engines=onnx")
    shape = list(images.shape[1:])
    program = program_of(deployable(model, shape, align), shape)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        write_onnx(program, {}, file)
        session = onnx_session(file, torch.get_num_threads())
    feed = {INPUT: images.numpy()}
    return lambda: session.run(None, feed)


ENGINES: dict[str, Engine] = {"eager": eager, "compiled": compiled, "onnx": onnx}


def engine_of(name: str, align: int) -> Engine:
    """An engine by its name in `ENGINES`; `align` as in an export, which ONNX Runtime's is."""
    return partial(onnx, align=align) if name == "onnx" else ENGINES[name]

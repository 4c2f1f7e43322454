"""The engines that a network is timed on: each turns it into a call on a fixed batch."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rni_pl.export.exporting import check_packages, folded
from rni_pl.export.formats import INPUT, onnx_session, program_of, write_onnx

Call = Callable[[], object]
Engine = Callable[[nn.Module, Tensor, int], Call]


def eager(model: nn.Module, images: Tensor, threads: int) -> Call:
    """PyTorch, the network as `rni_pl.load_model` returns it."""

    def call() -> Tensor:
        with torch.inference_mode():
            return model(images)

    return call


def compiled(model: nn.Module, images: Tensor, threads: int) -> Call:
    """PyTorch, through `torch.compile`, as one graph."""
    fast: Any = torch.compile(model, fullgraph=True, dynamic=False)
    return eager(fast, images, threads)


def onnx(model: nn.Module, images: Tensor, threads: int) -> Call:
    """ONNX Runtime, with the file that `rni_pl.export` writes."""
    check_packages("engines=onnx")
    program = program_of(folded(model), list(images.shape[1:]))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        write_onnx(program, {}, file)
        session = onnx_session(file, threads)
    feed = {INPUT: images.numpy()}
    return lambda: session.run(None, feed)


ENGINES: dict[str, Engine] = {"eager": eager, "compiled": compiled, "onnx": onnx}

"""The engines that a network is timed on: each turns it into a call on a fixed batch."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rni_pl.export.exporting import MULTIPLE, check_packages, deployable
from rni_pl.export.formats import INPUT, onnx_session, program_of, quiet, write_onnx

Call = Callable[[], object]
Engine = Callable[[nn.Module, Tensor, "Setup"], Call]


@dataclass(frozen=True)
class Setup:
    """What networks are timed on.

    Attributes:
        engine: a name of `ENGINES`.
        batch: images a call.
        threads: of the engine; None: as many as PyTorch uses.
        align: ONNX Runtime's networks are filled up to multiples of this, as in an export.
        repeats: rounds in which networks take turns.
    """

    engine: str
    batch: int
    threads: int | None = None
    align: int = MULTIPLE
    repeats: int = 20


def eager(model: nn.Module, images: Tensor, setup: Setup) -> Call:
    """PyTorch, the network as `rni_pl.load_model` returns it."""

    def call() -> Tensor:
        with torch.inference_mode():
            return model(images)

    return call


def compiled(model: nn.Module, images: Tensor, setup: Setup) -> Call:
    """PyTorch, through `torch.compile`, as one graph."""
    fast: Any = torch.compile(model, fullgraph=True, dynamic=False)
    call = eager(fast, images, setup)
    with quiet():
        call()  # compiles
    return call


def onnx(model: nn.Module, images: Tensor, setup: Setup) -> Call:
    """ONNX Runtime, with the file that `rni_pl.export` writes."""
    check_packages("engines=onnx")
    shape = list(images.shape[1:])
    program = program_of(deployable(model, shape, setup.align), shape)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        write_onnx(program, {}, file)
        session = onnx_session(file, setup.threads or torch.get_num_threads())
    feed = {INPUT: images.numpy()}
    return lambda: session.run(None, feed)


ENGINES: dict[str, Engine] = {"eager": eager, "compiled": compiled, "onnx": onnx}

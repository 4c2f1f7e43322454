"""What the convolutions of a training step take by themselves."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from reference import BATCH
from torch import Tensor, nn
from torch.nn import functional as F

from rni_pl.training import hardware


@dataclass(frozen=True)
class Convolution:
    """One of the network's, with what a batch gives it, in the precision of our defaults here."""

    x: Tensor
    weight: Tensor
    gradient: Tensor
    stride: tuple[int, ...]
    padding: str | tuple[int, ...]

    def forward(self) -> None:
        F.conv2d(self.x, self.weight, None, self.stride, self.padding)

    def backward(self) -> None:
        needed = [self.x.shape[1] > 3, True, False]  # nobody asks for the images' gradient
        geometry = (self.stride, self.padding, [1, 1], False, [0, 0], 1)
        torch.ops.aten.convolution_backward(
            self.gradient, self.x, self.weight, None, *geometry, needed
        )

    def giga_flop(self) -> float:
        """Of one forward pass."""
        return 2 * self.gradient.numel() * self.weight[0].numel() / 1e9


def convolutions(model: nn.Module) -> list[Convolution]:
    """All of a network's, on a batch of CIFAR-sized images."""
    found: list[Convolution] = []
    mixed = hardware.choose_precision("auto", "cpu") == "bf16-mixed"
    dtype = torch.bfloat16 if mixed else torch.float32

    def note(layer: nn.Conv2d, args: tuple[Tensor, ...], output: Tensor) -> None:
        x, weight = args[0].to(dtype), layer.weight.to(dtype)
        gradient = torch.randn_like(output, dtype=dtype)
        found.append(Convolution(x, weight, gradient, layer.stride, layer.padding))

    model.train().to(memory_format=torch.channels_last)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(note)
    with torch.no_grad():
        model(torch.randn(BATCH, 3, 32, 32).to(memory_format=torch.channels_last))
    return found


def fastest(call: Callable[[], None], repeats: int = 5) -> float:
    """Seconds that a call takes, the least of four times `repeats`."""
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        seconds.append((time.perf_counter() - start) / repeats)
    return min(seconds)


def peak(model: nn.Module) -> float:
    """The most GFLOP/s that a convolution of the network reaches, forward."""
    return max(each.giga_flop() / fastest(each.forward) for each in convolutions(model))


def seconds_of_convolutions(model: nn.Module) -> float:
    """Seconds that all convolutions of a step take, forward and backward, with nothing between."""
    layers = convolutions(model)
    return sum(fastest(each.forward) + fastest(each.backward) for each in layers)

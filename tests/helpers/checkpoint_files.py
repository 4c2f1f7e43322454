"""Networks as training leaves them, and checkpoints of them that no training has written."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rni_pl.norm import scaled_norms
from rni_pl.pruning.structure import structure_of
from rni_pl.runs.spec import ModelSpec

CLASSES = [f"class {i}" for i in range(10)]


def as_trained(model: nn.Module) -> nn.Module:
    """Random scales, biases and running statistics, and logits of the size that training gives."""
    for _, norm in scaled_norms(model):
        if norm.bias is None:
            nn.init.normal_(norm.weight)
        else:
            nn.init.uniform_(norm.weight, 0.01, 1)
            nn.init.normal_(norm.bias, std=0.3)
        norm.running_mean.normal_(std=0.3)
        norm.running_var.uniform_(0.5, 2)
    heads = [m for m in model.modules() if isinstance(m, nn.Linear)]
    nn.init.normal_(heads[-1].weight)
    return model.eval()


def spec_of(target: str, norm: str = "bn", **options: Any) -> ModelSpec:
    """The description of a network of ten classes."""
    arch = {"_target_": target, **options}
    mean, std = [0.49, 0.48, 0.45], [0.20, 0.21, 0.22]
    data = {"name": "some images"}
    return ModelSpec(arch, 10, norm, method="rni", classes=CLASSES, data=data, mean=mean, std=std)


def save_checkpoint(model: nn.Module, spec: ModelSpec, path: Path) -> Path:
    """A checkpoint of `model`, as training leaves it."""
    spec = ModelSpec(**{**asdict(spec), "structure": structure_of(model)})
    state = {f"model.{key}": value for key, value in model.state_dict().items()}
    torch.save({"hyper_parameters": {"spec": spec.to_dict()}, "state_dict": state}, path)
    return path


class Chain(nn.Module):
    """Two convolutions with a norm layer each, of a width that is no multiple of four."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        return self.fc(self.bn2(self.conv2(x)).relu().mean((2, 3)))

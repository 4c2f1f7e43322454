"""Trained BatchNorm carried over into SigBN: the same function, or said what is lost."""

from collections.abc import Callable

import pytest
import torch
import torchvision
from masking import difference, randomise
from torch import nn
from torch.nn import functional as F

from rni_pl import models
from rni_pl.norm import norm_kind
from rni_pl.pruning.carryover import to_sigbn


@pytest.mark.parametrize("name", ["resnet20", "vgg16", "resnet18", "shufflenet_v2_x1_0"])
def test_sigbn_computes_what_batchnorm_did(name: str) -> None:
    ours = getattr(models, name, None)
    model = randomise(ours() if ours else getattr(torchvision.models, name)(num_classes=10)).eval()
    x = torch.randn(2, 3, 32, 32)
    start, carried = to_sigbn(model, x[:1])
    assert norm_kind(start) == "sigbn"
    assert norm_kind(model) == "bn", "the given model was changed"
    assert (carried.clamped, carried.lost) == (0, 0)
    assert carried.above > 0.1 * carried.channels
    with torch.no_grad():
        assert difference(start.double()(x.double()), model.double()(x.double())) < 1e-5


def test_what_cannot_be_carried_over_is_counted() -> None:
    model = randomise(torchvision.models.mobilenet_v2(num_classes=10)).eval()
    _, carried = to_sigbn(model, torch.zeros(1, 3, 32, 32))
    assert 0 < carried.clamped < carried.above  # ReLU6 caps what a factor would change


def test_norm_layers_without_statistics_are_carried_over() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False))
    nn.init.uniform_(model[1].weight, 0.1, 0.9)
    x = torch.randn(2, 3, 8, 8)
    start, _ = to_sigbn(model.eval(), x[:1])
    with torch.no_grad():
        assert difference(start(x), model(x)) < 1e-4


class TwoNorms(nn.Module):
    """The second norm layer reads what the first has scaled, or the rows of its images."""

    def __init__(self, between: Callable) -> None:
        super().__init__()
        self.conv1, self.bn1, self.bn2 = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 4, 3)
        self.between = between

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.between(self.bn1(self.conv1(x)))
        return self.conv2(self.bn2(x).relu()).mean((2, 3))


@pytest.mark.parametrize(
    "between", [torch.relu, lambda x: x.mT.transpose(1, 2)], ids=["relu", "turned"]
)
def test_norm_layers_with_no_convolution_in_front_are_carried_over_too(between: Callable) -> None:
    model = randomise(TwoNorms(between)).eval()
    for norm in (model.bn1, model.bn2):
        nn.init.uniform_(norm.weight, 0.8, 0.99)
    x = torch.randn(2, 3, 10, 10)
    start, carried = to_sigbn(model, x[:1])
    assert (carried.channels, carried.clamped) == (16, 0)
    with torch.no_grad():
        assert difference(start(x), model(x)) < 1e-4


class Between(nn.Module):
    """Layers between a trained norm layer and a convolution that reads it."""

    def __init__(self, between: nn.Module, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.between = between
        self.head = nn.Sequential(nn.Conv2d(width, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.between(self.stem(x))).mean((2, 3))


class Offset(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.ones(1, 1, 8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.offset)


class Padded(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.pad(x, (1, 1, 1, 1), value=1.0)


@pytest.mark.parametrize(
    ("between", "shared"),
    [
        (nn.Conv2d(8, 8, 3, groups=8, bias=False), True),
        (nn.Conv2d(8, 8, 3, groups=4, bias=False), True),
        (nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8)), True),
        (Offset(), False),
        (Padded(), False),
    ],
    ids=["depthwise", "grouped", "depthwise with a norm", "learned offset", "padded with ones"],
)
def test_scales_are_shared_with_what_can_make_up_for_them(between: nn.Module, shared: bool) -> None:
    model = randomise(Between(between)).eval()
    nn.init.uniform_(model.stem[1].weight, 1.1, 3.0)  # all out of a sigmoid's reach
    for norm in (model.head[1], *(m for m in between.modules() if isinstance(m, nn.BatchNorm2d))):
        nn.init.uniform_(norm.weight, 0.1, 0.9)
    x = torch.randn(2, 3, 10, 10)
    start, carried = to_sigbn(model, x[:1])
    assert (carried.above, carried.clamped) == (8, 0 if shared else 8)
    with torch.no_grad():
        assert (difference(start(x), model(x)) < 1e-4) is shared


def test_signs_of_shared_convolutions_are_not_turned() -> None:
    second = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU())
    third = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU())
    second[0].weight = third[0].weight
    model = randomise(Between(nn.Sequential(second, third))).eval()
    for norm in (model.stem[1], second[1], third[1], model.head[1]):
        nn.init.uniform_(norm.weight, 0.1, 0.9)
    with torch.no_grad():
        second[1].weight[:3] *= -1
    _, carried = to_sigbn(model, torch.zeros(1, 3, 10, 10))
    assert carried.lost == 3

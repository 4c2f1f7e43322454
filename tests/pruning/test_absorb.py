"""Folding constants in, and re-estimating statistics."""

import copy

import pytest
import torch
from masking import difference, randomise
from torch import nn

from rni_pl import models
from rni_pl.norm import silence
from rni_pl.pruning import PruningReport, prune


def emitting(model: nn.Module, report: PruningReport) -> nn.Module:
    """A copy whose removed channels emit what their bias makes of a scale of 0."""
    model = copy.deepcopy(model)
    for name, kept in report.kept.items():
        norm = model.get_submodule(name)
        gone = torch.ones(norm.num_features, dtype=torch.bool)
        gone[kept] = False
        silence(norm, gone)
    return model


def unpadded(bias: bool) -> nn.Module:
    """Convolutions without padding, with a BatchNorm or a bias behind what is removed."""
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Conv2d(12, 16, 3, bias=bias), nn.BatchNorm2d(16), nn.SiLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 8, 1, bias=bias), nn.BatchNorm2d(8), nn.Sigmoid(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip


@pytest.mark.parametrize("bias", [False, True])
@torch.no_grad()
def test_exact_without_padding(bias: bool) -> None:
    model = randomise(unpadded(bias)).double().eval()
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    before = model(x)
    pruned, report = prune(model, x, 0.5, "local", absorb=True)
    assert report.absorbed is not None
    assert report.absorbed.exact == ["3", "7", "12"]
    assert not report.absorbed.approximate
    assert difference(pruned(x), emitting(model, report)(x)) < 1e-10
    plain, _ = prune(model, x, 0.5, "local")
    assert difference(plain(x), emitting(model, report)(x)) > 1e-2, "nothing to absorb here"
    assert torch.equal(model(x), before), "the given model was changed"


@torch.no_grad()
def test_padding_makes_it_approximate() -> None:
    model = randomise(models.resnet20()).eval()
    x = torch.randn(16, 3, 32, 32)
    pruned, report = prune(model, x, 0.5, absorb=True)
    plain, _ = prune(model, x, 0.5)
    assert report.absorbed is not None
    assert report.absorbed.approximate
    expected = emitting(model, report)(x)
    assert difference(pruned(x), expected) < 0.7 * difference(plain(x), expected)


@torch.no_grad()
def test_sigbn_emits_nothing() -> None:
    model = randomise(models.resnet20(norm="sigbn")).eval()
    x = torch.randn(2, 3, 32, 32)
    pruned, report = prune(model, x, 0.5, absorb=True)
    plain, _ = prune(model, x, 0.5)
    assert report.absorbed is not None
    assert not report.absorbed.exact + report.absorbed.approximate
    assert torch.equal(pruned(x), plain(x))


@torch.no_grad()
def test_constants_without_a_place_are_reported() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1, bias=False),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    randomise(model)[1].bias.fill_(1.0)
    _, report = prune(model.eval(), torch.randn(2, 3, 8, 8), 0.5, absorb=True)
    assert report.absorbed is not None
    assert list(report.absorbed.lost) == ["3"]

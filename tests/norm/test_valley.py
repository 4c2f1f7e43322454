"""Whether the importances of a network have two modes."""

import pytest
import torch

from rni_pl import models
from rni_pl.norm.valley import valley_of


def scored(mode: float) -> torch.nn.Module:
    """VGG-16 with SigBN, one part of whose scales lies around `mode`."""
    model = models.vgg16(norm="sigbn")
    for module in model.modules():
        if hasattr(module, "running_mean"):
            size = len(module.weight)
            gamma = 2 + 0.5 * torch.randn(size)
            gamma[: size // 3] = mode + 0.5 * torch.randn(size // 3)
            module.weight.data.copy_(gamma)
    return model


def test_valley_of_a_network() -> None:
    found = valley_of(scored(-8))
    assert found is not None
    assert found.divides
    assert found.depth < 0.05
    assert 0.002 < found.score < 0.5
    assert found.share == pytest.approx(1 / 3, abs=0.01)
    single = valley_of(scored(2))
    assert single is None or not single.divides
    assert valley_of(torch.nn.Conv2d(3, 3, 1)) is None

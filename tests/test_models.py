"""Networks as they are built."""

import pytest
import torch
from torch import nn

from rni_pl import models


@pytest.mark.parametrize("arch", ["vgg16", "resnet20"])
def test_one_seed_gives_the_same_convolutions_for_every_norm(arch: str) -> None:
    weights = []
    for norm in ("bn", "sigbn"):
        torch.manual_seed(5)
        model = getattr(models, arch)(norm=norm)
        weights.append([m.weight for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_initialisation_of_the_reference() -> None:
    model = models.resnet56()
    conv = model.layer3[4].conv1
    assert conv.weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)
    assert model.fc.weight.std().item() == pytest.approx(0.01, rel=0.2)
    assert not model.fc.bias.any()
    assert model.bn1.weight.eq(0.5).all()
    assert not model.bn1.bias.any()
    gammas = torch.cat(
        [m.weight for m in models.resnet56(norm="sigbn").modules() if isinstance(m, nn.BatchNorm2d)]
    )
    assert abs(gammas.mean().item()) < 0.1
    assert gammas.std().item() == pytest.approx(1.0, rel=0.1)

"""Running statistics estimated anew: the averages over batches, and nothing else changed."""

import torch
from torch import Tensor, nn

from rni_pl import models
from rni_pl.norm import scaled_norms
from rni_pl.norm.calibration import recalibrate


def test_recalibrated_statistics_are_the_averages() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3, momentum=0.1), nn.Dropout(0.5)).eval()
    batches = [torch.randn(10, 3, 4, 4) * scale + scale for scale in (1.0, 2.0, 3.0)]
    assert recalibrate(model, batches) == 3
    means = torch.stack([batch.mean((0, 2, 3)) for batch in batches]).mean(0)
    variances = torch.stack([batch.transpose(0, 1).flatten(1).var(1) for batch in batches]).mean(0)
    assert torch.allclose(model[0].running_mean, means, atol=1e-5)
    assert torch.allclose(model[0].running_var, variances, atol=1e-4)
    assert (model[0].momentum, model[0].training) == (0.1, False)


def test_recalibration_touches_statistics_only() -> None:
    model = models.resnet20().train()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    counter: Tensor = model.bn1.running_mean.clone()
    recalibrate(model, [torch.randn(4, 3, 32, 32)])
    assert model.training
    assert not torch.equal(counter, model.bn1.running_mean)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert recalibrate(model, []) == 0
    assert len(list(scaled_norms(model))) == 19

"""SigBN in place of BatchNorm."""

import pytest
import torch
from torch import nn

import rni_pl
from rni_pl.norm import SigmoidBatchNorm2d


def test_convert_batchnorm_of_any_model() -> None:
    import torchvision

    net = torchvision.models.resnet18()
    net.bn1.running_mean.fill_(2.0)
    converted = rni_pl.convert_batchnorm(net)
    norms = [m for m in converted.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 20
    assert all(type(m) is SigmoidBatchNorm2d and m.bias is None for m in norms)
    assert converted.bn1.running_mean.eq(2.0).all()
    assert type(rni_pl.convert_batchnorm(nn.BatchNorm2d(3))) is SigmoidBatchNorm2d


def test_sigbn_is_built_in_the_place_of_batchnorm() -> None:
    built = SigmoidBatchNorm2d(8, 1e-3, 0.2, True, False)  # in the order of nn.BatchNorm2d
    assert (built.eps, built.momentum, built.running_mean) == (1e-3, 0.2, None)
    with pytest.raises(ValueError, match=r"affine=False makes a BatchNorm"):
        SigmoidBatchNorm2d(8, affine=False)


def test_sigbn_is_batchnorm_with_sigmoid_scale() -> None:
    sig, plain = SigmoidBatchNorm2d(5), nn.BatchNorm2d(5)
    plain.weight.data = torch.sigmoid(sig.weight.data)
    for mode in (True, True, False):
        sig.train(mode), plain.train(mode)
        x = torch.randn(4, 5, 3, 3) * 2 + 1
        assert torch.allclose(sig(x), plain(x), atol=1e-6)
    assert torch.equal(sig.running_var, plain.running_var)
    assert sig.num_batches_tracked == 2

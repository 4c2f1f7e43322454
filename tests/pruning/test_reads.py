"""What a network's own code asks that no graph shows: sizes, the mode, kinds of tensors."""

from collections.abc import Callable

import pytest
import torch
from masking import check, prepared
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from unusual_networks import Net, conv, through

from rni_pl import convert_batchnorm


class Swish(torch.autograd.Function):
    """Its backward pass is its own, so that its forward pass is called from C++."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return grad


@torch.jit.script
def scripted(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def dropped_paths(net: Net, x: Tensor) -> Tensor:
    x = net.stem(x)
    if net.training:
        x = x * x.new_empty((len(x), 1, 1, 1)).bernoulli_(0.9) / 0.9
    return net.head(x)


def with_zeros(zeros: Callable[[Tensor, tuple], Tensor]) -> Net:
    """Four more channels beside those of the stem."""
    return Net(
        lambda net, x: net.head(torch.cat([y := net.stem(x), zeros(y, tuple(y.shape))], 1)), 16
    )


PRUNED = {
    "a function of its own": lambda: through(Swish.apply),
    "a scripted function": lambda: through(scripted),
    "memory for time": lambda: Net(
        lambda net, x: net.head(checkpoint(net.stem, x, use_reentrant=True))
    ),
    "drops paths in training": lambda: Net(dropped_paths),
    "sizes one by one": lambda: with_zeros(
        lambda y, s: torch.zeros(s[0], 4, s[2], s[3], dtype=y.dtype, device=y.device)
    ),
    "zeros of its kind": lambda: with_zeros(lambda y, s: y.new_zeros(s[0], 4, s[2], s[3])),
    "type of a weight": lambda: Net(
        lambda net, x: net.head(net.stem(x.to(net.stem[0].weight.dtype)))
    ),
}


@pytest.mark.parametrize("build", PRUNED.values(), ids=PRUNED)
def test_pruned(build: Callable) -> None:
    report = check(*prepared(build), ratio=0.5)
    assert len(report.kept["stem.1"]) < 12
    assert not report.skipped


def scaled(net: Net, x: Tensor) -> Tensor:
    return net.head(net.more(net.stem(x)) * net.more[0].out_channels ** -0.5)


def added_where_it_fits(net: Net, x: Tensor) -> Tensor:
    x = net.stem(x)
    more = net.more(x)
    if net.more[0].in_channels == net.more[0].out_channels:
        more = more + x
    return net.head(more)


def padded(net: Net, x: Tensor) -> Tensor:
    x = net.more(net.stem(x))
    return net.head(F.pad(x, (0, 0, 0, 0, 0, net.more[1].num_features - 24)))


@pytest.mark.parametrize("function", [scaled, padded])
def test_layers_whose_sizes_are_read_stay(function: Callable) -> None:
    report = check(*prepared(lambda: Net(function, 24, more=conv(12, 24))), ratio=0.5)
    assert "fewer channels" in report.skipped["more.1"]
    assert len(report.kept["head.0.1"]) < 8


def test_layers_whose_sizes_are_compared_stay_different() -> None:
    model, x = prepared(lambda: Net(added_where_it_fits, 24, more=conv(12, 24)))
    assert "more.1" in check(model, x, ratio=0.5, scope="local").kept
    with torch.no_grad():  # 9 of each would be added
        model.stem[1].weight.copy_(torch.arange(12) + 100.0)
        model.stem[1].weight[:3], model.more[1].weight[:15] = 1, 1
        model.more[1].weight[15:], model.head[0][1].weight[:] = 100, 100
    report = check(model, x, ratio=0.4)
    assert len(report.kept.get("stem.1", range(12))) != len(report.kept.get("more.1", range(24)))


def noisy(net: Net, x: Tensor) -> Tensor:
    x = net.stem(x)
    if net.training:
        x = x * torch.bernoulli(torch.full((len(x), 12, 1, 1), 0.9, dtype=x.dtype))
    return net.head(x)


def with_features(net: Net, x: Tensor) -> Tensor:
    y = net.stem(x)
    if net.training:
        return net.head(y).sum() + y.flatten(2).transpose(1, 2).reshape(-1, 12).sum()
    return net.head(y)


def noisy_by_number(net: Net, x: Tensor) -> Tensor:
    mode = net.training
    x = F.dropout(net.stem(x), 0.1, mode)
    noise = torch.bernoulli(torch.full((len(x), 12, 1, 1), 0.9, dtype=x.dtype))
    return net.head(x * noise if int(mode) == 1 else x)


@pytest.mark.parametrize("function", [noisy, noisy_by_number, with_features])
def test_what_the_code_does_in_training_alone_counts(function: Callable) -> None:
    report = check(*prepared(lambda: Net(function)), ratio=0.5)
    assert "stem.1" in report.skipped
    assert len(report.kept["head.0.1"]) < 8


class Listed(nn.Module):
    """Calls its layers through a list that no module knows of."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.layers = [self.conv, self.norm]


def test_layers_that_a_list_holds_are_not_converted() -> None:
    model = Listed()
    with pytest.raises(ValueError, match=r"layers holds BatchNorm layers: make an nn.ModuleList"):
        convert_batchnorm(model)
    assert type(model.norm) is nn.BatchNorm2d


def test_nothing_to_convert_is_said() -> None:
    with pytest.raises(ValueError, match="Sequential has no BatchNorm that could"):
        convert_batchnorm(nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8)))

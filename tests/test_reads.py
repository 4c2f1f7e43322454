"""What a network's own code asks that no graph shows: sizes, the mode, kinds of tensors."""

import builtins
from collections.abc import Callable

import pytest
import torch
from odd import Net, conv
from test_code_of_networks import through
from test_odd_networks import check, prepared
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from rni_pl import convert_batchnorm
from rni_pl.errors import PruningError
from rni_pl.pruning import graph, prune


class Swish(torch.autograd.Function):
    """In C++, what is called hands its arguments on as tensors."""

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


def test_scripted_functions_are_refused() -> None:
    with pytest.raises(PruningError, match="cannot trace"):
        prune(*prepared(lambda: through(scripted)), 0.5)


def test_python_is_as_it_was_after_an_error() -> None:
    before = (builtins.isinstance, torch.zeros, dict(vars(nn.Module)), dict(vars(nn.Conv2d)))
    with pytest.raises(PruningError):
        prune(*prepared(lambda: through(lambda x: x if x.sum() > 0 else -x)), 0.5)
    prune(*prepared(lambda: through(F.relu)), 0.5)
    after = (builtins.isinstance, torch.zeros, dict(vars(nn.Module)), dict(vars(nn.Conv2d)))
    assert after == before


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


@pytest.mark.parametrize("function", [scaled, added_where_it_fits, padded])
def test_layers_whose_sizes_are_read_stay(function: Callable) -> None:
    report = check(*prepared(lambda: Net(function, 24, more=conv(12, 24))), ratio=0.5)
    assert "sizes the network's own code reads" in report.skipped["more.1"]
    assert len(report.kept["head.0.1"]) < 8


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


def test_the_mode_may_be_asked_for_by_identity() -> None:
    def turned(net: Net, x: Tensor) -> Tensor:
        x = net.stem(x)
        return net.head(x.flip(1) if net.training is False else x)

    report = check(*prepared(lambda: Net(turned)), ratio=0.5)
    assert len(report.kept["head.0.1"]) < 8


def test_dropout_that_is_told_the_mode_needs_no_second_trace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, x = prepared(
        lambda: Net(lambda net, x: net.head(F.dropout(net.stem(x), 0.1, training=net.training)))
    )
    given: list[bool] = []
    monkeypatch.setattr(graph, "_trace_in_training", lambda *_: given.append(True))
    _, report = prune(model, x, 0.5)
    assert not given
    assert not report.skipped


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
    with pytest.raises(ValueError, match="Sequential has no BatchNorm2d"):
        convert_batchnorm(nn.Sequential(nn.Conv2d(3, 8, 3), nn.SyncBatchNorm(8)))

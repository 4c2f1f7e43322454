"""Channels that matter where it is easily overlooked: in other modes, names, numbers, layers."""

import json
import types

import numpy as np
import pytest
import subtle_networks
import torch
from masking import check, difference, masked, prepared, randomise
from torch import Tensor, nn
from torch.nn import functional as F
from unusual_networks import Net, conv, head

from rni_pl import convert_batchnorm
from rni_pl.callbacks import SparsityRegulariser
from rni_pl.cost import macs, macs_on
from rni_pl.errors import ConfigError, PruningError
from rni_pl.norm.calibration import recalibrate
from rni_pl.pruning import prune
from rni_pl.pruning.costs import Costs
from rni_pl.pruning.trace import trace
from rni_pl.regularisers import L1


@pytest.mark.parametrize("ratio", [0.3, 0.6])
@pytest.mark.parametrize(
    ("build", "layer", "why"), subtle_networks.LEFT_WHOLE.values(), ids=subtle_networks.LEFT_WHOLE
)
def test_left_whole_with_a_reason(build, layer: str, why: str, ratio: float) -> None:
    report = check(*prepared(build), ratio=ratio, coupled=True)
    assert why in report.skipped[layer]
    assert "head.0.1" in report.kept


def test_half_that_changes_in_place_stays() -> None:
    report = check(*prepared(lambda: Net(subtle_networks.half_changed)), ratio=0.6)
    assert report.kept["stem.1"][:6] == list(range(6))
    assert len(report.kept["stem.1"]) < 12


def test_what_the_network_gives_back_stays() -> None:
    model, x = prepared(lambda: Net(lambda s, x: (s.head(y := s.stem(x)), y[:, 8:])))
    with torch.no_grad():
        pruned, report = prune(model, x, 0.6)
        assert list(report.kept) == ["head.0.1"]
        for found, expected in zip(pruned(x), masked(model, report)(x), strict=True):
            assert difference(found, expected) < 1e-9


def test_a_head_for_training_and_one_for_evaluation() -> None:
    model, x = prepared(subtle_networks.TwoHeads)
    pruned, report = prune(model, x, 0.5)
    assert "stem.1" in report.kept
    assert {"train_head.0.1", "eval_head.0.1"} <= report.kept.keys()
    with torch.no_grad():
        for mode in (False, True):  # the latter changes statistics
            expected = masked(model, report).train(mode)(x)
            assert difference(pruned.train(mode)(x), expected) < 1e-9


def test_heads_of_training_cost_no_macs() -> None:
    model, x = prepared(subtle_networks.TwoHeads)
    graph = trace(model, x)
    everything = torch.ones(graph.size, dtype=torch.bool)
    assert Costs(graph).macs(everything) == macs(model, (3, 16, 16))


def test_layers_of_shared_statistics_lose_the_same() -> None:
    model, x = prepared(
        lambda: Net(
            lambda s, x: s.head(s.stem(x)) + s.tail(s.other(x)), other=conv(3, 12), tail=head(12)
        )
    )
    model.other[1].running_mean = model.stem[1].running_mean
    report = check(model, x, ratio=0.5)
    assert report.kept["stem.1"] == report.kept["other.1"]
    assert len(report.kept["stem.1"]) < 12


def test_forward_pass_set_on_the_network_is_followed() -> None:
    model, x = prepared(lambda: Net(lambda s, x: s.head(s.stem(x))))
    model.forward = types.MethodType(lambda self, x: self.head(self.stem(x).softmax(1)), model)
    assert "softmax (test_subtle_networks.py" in check(model, x, ratio=0.5).skipped["stem.1"]


def test_masks_of_torch_are_pruned_too() -> None:
    from torch.nn.utils import prune as torch_prune

    model, x = prepared(lambda: Net(lambda s, x: s.head(s.stem(x))))
    torch_prune.l1_unstructured(model.stem[0], "weight", 0.5)
    assert not check(model, x, ratio=0.5).skipped


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 12), head(12)

    def forward(self, data: dict[str, Tensor], more: Tensor | None = None) -> Tensor:
        x = data["image"]
        return self.b(self.a(x if more is None else x + more))


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("target", ["channels", "macs"])
def test_arguments_of_any_kind(several: bool, target: str) -> None:
    model, image = randomise(Named()).eval(), torch.randn(2, 3, 8, 8)
    inputs = ({"image": image}, image) if several else ({"image": image},)
    pruned, report = prune(model, inputs, 0.5, target=target)
    with torch.no_grad():
        assert difference(pruned(*inputs), masked(model, report)(*inputs)) < 1e-5


def test_macs_of_networks_in_another_precision() -> None:
    model = randomise(Named()).double().eval()
    inputs = ({"image": torch.randn(2, 3, 8, 8)}, torch.randn(3, 1, 1))
    everything = macs_on(model, inputs, {})
    assert everything == macs_on(model, ({"image": torch.randn(1, 3, 8, 8)},), {}) > 0


def test_numbers_do_not_change_in_place() -> None:
    def flattened(net: Net, x: Tensor) -> Tensor:
        n, c, h, w = (x := net.stem(x)).shape
        d = c
        d += 1
        return net.head(x.view(n, c, h * w).view(n, d - 1, h, w))

    def odd(net: Net, x: Tensor) -> Tensor:
        c = (x := net.stem(x)).shape[1]
        return net.head(x.view(-1, c, 16, 16) if (c & 64) == 0 else -x)

    for function in (flattened, odd):
        model, x = prepared(lambda function=function: Net(function))
        assert "stem.1" in check(model, x, ratio=0.5).kept


def without(net: Net, *unused: str) -> Net:
    """What is not reached has its surroundings stay whole."""
    for name in unused:
        delattr(net, name)
    return net


def test_every_layer_of_a_group_keeps_its_floor() -> None:
    net = Net(
        lambda s, x: s.tail(s.deep(s.wide(x))),
        wide=conv(3, 32), deep=conv(32, 8, groups=8), tail=head(8),
    )  # fmt: skip
    model, x = prepared(lambda: without(net, "stem", "head"))
    _, report = prune(model, x, 0.9, "local")
    assert min(len(kept) for kept in report.kept.values()) == 3
    for step in (2, 4):
        _, report = prune(model, x, 0.4, "local", round_to=step)
        assert all(len(kept) % step == 0 for kept in report.kept.values())


def test_equal_scores_are_warned_of() -> None:
    model = nn.Sequential(conv(3, 12), conv(12, 12), head(12))  # scales are 1
    with pytest.warns(UserWarning, match=r"prune.ratio=0.1: 7\d.\d% of the channels go"):
        prune(model, torch.randn(1, 3, 8, 8), 0.1)


def test_a_reader_of_two_constants_is_not_exact() -> None:
    def twice(net: Net, x: Tensor) -> Tensor:
        one, two = net.same(F.relu(net.stem(x))), net.same(torch.tanh(net.other(x)))
        return net.out((one + 2 * two).mean((2, 3)))

    net = Net(twice, same=nn.Conv2d(12, 6, 1), other=conv(3, 12), out=nn.Linear(6, 5))
    model, x = prepared(lambda: without(net, "head"))
    _, report = prune(model, x, 0.5, "local", absorb=True)
    assert report.absorbed.exact == []
    assert report.absorbed.approximate == ["same"]


def test_a_norm_that_others_use_absorbs_nothing() -> None:
    def shared(net: Net, x: Tensor) -> Tensor:
        y, z = net.norm(net.one(net.stem(x))).relu(), net.norm(net.two(x)).relu()
        return net.out((y + 2 * z).mean((2, 3)))

    net = Net(
        shared, one=nn.Conv2d(12, 6, 1, bias=False), two=nn.Conv2d(3, 6, 1, bias=False),
        norm=nn.BatchNorm2d(6), out=nn.Linear(6, 5),
    )  # fmt: skip
    model, x = prepared(lambda: without(net, "head"))
    _, report = prune(model, x, 0.5, "local", absorb=True)
    assert "one" in report.absorbed.lost


class SharedNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.norm = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.one(x)) + self.norm(self.two(x))


def test_recalibration_averages_over_all_calls() -> None:
    model, batches = SharedNorm(), torch.randn(4, 8, 3, 8, 8)
    assert recalibrate(model, batches) == 4
    with torch.no_grad():
        means = [layer(x).mean((0, 2, 3)) for x in batches for layer in (model.one, model.two)]
    torch.testing.assert_close(model.norm.running_mean, torch.stack(means).mean(0))
    assert model.norm.momentum == 0.1
    assert not model.norm._forward_pre_hooks


def test_recalibration_leaves_dropout_off_inside_of_norms() -> None:
    class Dropping(nn.BatchNorm2d):
        def __init__(self) -> None:
            super().__init__(3)
            self.drop = nn.Dropout(0.5)

    model = nn.Sequential(Dropping())
    seen = []
    model[0].register_forward_hook(lambda module, *_: seen.append(module.drop.training))
    recalibrate(model, torch.randn(2, 4, 3, 8, 8))
    assert seen == [False, False]


def test_conversion_keeps_what_is_frozen_and_refuses_hooks() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    model[1].weight.requires_grad_(False)
    assert not convert_batchnorm(model)[1].weight.requires_grad
    model = nn.Sequential(nn.BatchNorm2d(4))
    model[0].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="hooks"):
        convert_batchnorm(model)


def test_nothing_to_regularise_is_said_at_the_start() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).requires_grad_(False)
    with pytest.raises(ConfigError, match="no BatchNorm whose scales are trained"):
        SparsityRegulariser(L1()).on_fit_start(None, model)


def test_what_stays_behind_an_unknown_function_names_it() -> None:
    behind = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(12))
    model, x = prepared(
        lambda: Net(lambda s, x: s.head(s.behind(torch.cumsum(s.stem(x), 1))), behind=behind)
    )
    report = check(model, x, ratio=0.5)
    assert "cumsum (test_subtle_networks.py" in report.skipped["behind.1"]


@pytest.mark.parametrize(
    ("wrap", "words"),
    [
        (torch.compile, "before torch.compile"),
        (nn.DataParallel, "its .module"),
    ],
)
def test_wrapped_networks_are_named(wrap, words: str) -> None:
    model, x = prepared(lambda: Net(lambda s, x: s.head(s.stem(x))))
    with pytest.raises(PruningError, match=words):
        prune(wrap(model), x, 0.5)


def test_numbers_of_numpy_are_numbers() -> None:
    model, x = prepared(lambda: Net(lambda s, x: s.head(s.stem(x))))
    found = prune(model, x, np.float32(0.5), round_to=np.int64(4), min_channels=np.int32(2))[1]
    assert json.dumps(found.ratio) == "0.5"
    assert found.kept == prune(model, x, 0.5, round_to=4, min_channels=2)[1].kept


def test_the_memory_format_stays() -> None:
    model, x = prepared(lambda: Net(lambda s, x: s.head(s.stem(x))))
    for layout in (torch.channels_last, torch.contiguous_format):
        pruned, _ = prune(model.to(memory_format=layout), x, 0.5)
        weight = pruned.stem[0].weight
        assert weight.shape[0] < 12
        assert weight.is_contiguous(memory_format=layout)

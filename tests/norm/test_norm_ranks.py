"""BatchNorm1d, 2d and 3d count alike: SigBN, conversion, penalties, warm start."""

import copy
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

import rni_pl
from rni_pl import norm
from rni_pl.callbacks import SparsityRegulariser
from rni_pl.callbacks.sparsity import add_gradient, trainable_scales
from rni_pl.errors import ConfigError
from rni_pl.norm import SigmoidBatchNorm, SigmoidSyncBatchNorm, convert_batchnorm, sync
from rni_pl.regularisers import L1, RNI, Polarization, Regulariser
from rni_pl.training.recipe import Recipe, parameter_groups
from rni_pl.training.warmstart import has_sigbn

RANKS = {"1d": (8, 5, 6), "2d": (8, 5, 3, 4), "3d": (8, 5, 2, 3, 4)}  # shapes of a batch


def both(rank: str) -> tuple[Any, Any]:
    """Torch's BatchNorm of a rank, and ours."""
    return getattr(nn, f"BatchNorm{rank}"), getattr(rni_pl, f"SigmoidBatchNorm{rank}")


class Mixed(nn.Module):
    """Convolutions of three ranks, one behind the other, and one vector's norm."""

    def __init__(self) -> None:
        super().__init__()
        self.volume, self.bn3 = nn.Conv3d(1, 4, 3, padding=1), nn.BatchNorm3d(4)
        self.image, self.bn2 = nn.Conv2d(4, 5, 3, padding=1), nn.BatchNorm2d(5)
        self.line, self.bn1 = nn.Conv1d(5, 6, 3, padding=1), nn.BatchNorm1d(6)
        self.head = nn.Sequential(nn.Linear(6, 7), nn.BatchNorm1d(7), nn.Linear(7, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn3(self.volume(x)).relu().mean(2)
        x = self.bn2(self.image(x)).relu().mean(2)
        return self.head(self.bn1(self.line(x)).relu().mean(2))


NAMES = ["bn3", "bn2", "bn1", "head.1"]


def mixed(kind: str) -> nn.Module:
    """`Mixed` with scales of all sizes and signs."""
    torch.manual_seed(3)
    model = Mixed()
    for _, layer in norm.scaled_norms(model):
        nn.init.normal_(layer.weight)
    return convert_batchnorm(model) if kind == "sigbn" else model


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("rank", RANKS)
def test_sigbn_is_batch_norm_with_a_sigmoid_and_no_bias(rank: str, momentum: float | None) -> None:
    theirs, ours = both(rank)
    layer = ours(5, momentum=momentum)
    assert isinstance(layer, theirs)
    assert isinstance(layer, SigmoidBatchNorm)
    mean, var = torch.zeros(5), torch.ones(5)
    for step in range(1, 4):
        layer.train(step < 3)
        x = 2 * torch.randn(RANKS[rank]) + 1
        scale, factor = torch.sigmoid(layer.weight), momentum or 1 / step
        expected = F.batch_norm(x, mean, var, scale, None, step < 3, factor, layer.eps)
        assert torch.equal(layer(x), expected)
    assert torch.equal(layer.running_mean, mean)
    assert torch.equal(layer.running_var, var)
    with pytest.raises(ValueError, match="expected"):
        layer(torch.randn(*RANKS[rank], 2, 2))
    with pytest.raises(ValueError, match=f"SigmoidBatchNorm{rank} is its scale"):
        ours(5, affine=False)


def test_vectors_are_normalised() -> None:
    layer, x = rni_pl.SigmoidBatchNorm1d(5), torch.randn(8, 5)
    assert torch.equal(layer(x), layer(x.unsqueeze(2)).squeeze(2))


@pytest.mark.parametrize("rank", RANKS)
def test_conversion_keeps_the_rank_and_what_was_measured(rank: str) -> None:
    theirs, ours = both(rank)
    before = theirs(5, eps=1e-3, momentum=0.2, dtype=torch.float64).eval()
    before.running_mean.normal_()
    before.weight.requires_grad_(False)
    after: Any = convert_batchnorm(copy.deepcopy(before))
    assert type(after) is ours
    assert (after.eps, after.momentum, after.bias, after.training) == (1e-3, 0.2, None, False)
    assert not after.weight.requires_grad
    assert torch.equal(after.running_mean, before.running_mean)
    before.weight.copy_(torch.sigmoid(after.weight))
    x = torch.randn(RANKS[rank], dtype=torch.float64)
    assert torch.equal(after(x), before(x))


def test_every_rank_of_a_network_is_converted() -> None:
    model = mixed("sigbn")
    kinds = {name: type(layer).__name__ for name, layer in norm.scaled_norms(model)}
    ranks = dict(zip(NAMES, ("3d", "2d", "1d", "1d"), strict=True))
    assert kinds == {name: f"SigmoidBatchNorm{rank}" for name, rank in ranks.items()}
    assert norm.norm_kind(model) == "sigbn"
    assert norm.norm_kind(Mixed()) == "bn"
    output = model(torch.randn(4, 1, 3, 6, 6))
    output.square().sum().backward()
    assert all(layer.weight.grad.any() for _, layer in norm.scaled_norms(model))


def test_what_no_sigbn_replaces_is_refused() -> None:
    class Doubled(nn.BatchNorm3d):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    with pytest.raises(ValueError, match="Doubled does more than BatchNorm"):
        convert_batchnorm(nn.Sequential(Doubled(3)))
    with pytest.raises(ValueError, match="LazyBatchNorm1d has no size yet"):
        convert_batchnorm(nn.Sequential(nn.LazyBatchNorm1d()))
    with pytest.raises(ValueError, match="Sequential has no BatchNorm that"):
        convert_batchnorm(nn.Sequential(nn.Conv1d(3, 8, 3), nn.GroupNorm(2, 8)))


def test_scales_of_every_rank_rank_and_are_silenced() -> None:
    for kind in ("bn", "sigbn"):
        model = mixed(kind)
        sizes = norm.scale_sizes(model)
        assert list(sizes) == NAMES
        for name, layer in norm.scaled_norms(model):
            scale = torch.sigmoid(layer.weight) if kind == "sigbn" else layer.weight
            assert torch.equal(sizes[name], scale.abs())
            norm.silence(layer, sizes[name] < sizes[name].median())
        silent = torch.cat(list(norm.scale_sizes(model).values()))
        assert (silent == 0).sum() == 1 + 2 + 2 + 3


@pytest.mark.parametrize(
    ("regulariser", "per_scale"),
    [
        (RNI(0.3, 1.5), lambda g: torch.sigmoid(g + 1.5) * (1 - torch.sigmoid(g + 1.5).log())),
        (L1(0.3), torch.abs),
        (Polarization(0.3, 1.2), None),
    ],
    ids=lambda one: type(one).__name__,
)
def test_penalties_sum_over_every_rank(regulariser: Regulariser, per_scale: Any) -> None:
    """The gradient that the callback adds is autograd's of loss + penalty."""
    model, x = mixed(regulariser.norm).double(), torch.randn(4, 1, 3, 6, 6).double()
    callback: Any = SparsityRegulariser(regulariser)
    callback.on_fit_start(None, model)
    scales = [model.get_parameter(f"{name}.weight") for name in NAMES]
    penalty = regulariser.penalty(torch.cat(scales))
    if per_scale is not None:
        by_hand = 0.3 * sum(per_scale(scale).sum() for scale in scales)
        torch.testing.assert_close(penalty, by_hand)
    (model(x).square().sum() + penalty).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    model(x).square().sum().backward()
    without = [scale.grad.clone() for scale in scales]
    callback.on_before_optimizer_step(None, model, None)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name])
    for scale, before in zip(scales, without, strict=True):
        assert not torch.allclose(scale.grad, before), "the penalty is too small to be seen"


def test_frozen_scales_of_every_rank_are_left_alone() -> None:
    model = mixed("bn")
    frozen: Any = model.get_submodule("bn1")
    frozen.weight.requires_grad_(False)
    add_gradient(model, L1(0.1))
    assert frozen.weight.grad is None
    assert [scale.numel() for scale in trainable_scales(model)] == [4, 5, 7]


def test_scales_of_two_kinds_are_refused() -> None:
    model: Any = mixed("sigbn")
    model.head[1] = nn.BatchNorm1d(7)
    callback: Any = SparsityRegulariser(RNI())
    with pytest.raises(ConfigError, match="for scales of SigBN, the network has BatchNorm and Sig"):
        callback.on_fit_start(None, model)


def test_the_recipe_knows_sigbn_of_every_rank() -> None:
    rest, scales = parameter_groups(mixed("sigbn"), Recipe())
    assert sum(p.numel() for p in scales["params"]) == 4 + 5 + 6 + 7
    assert not any(p is q for p in rest["params"] for q in scales["params"])


def test_files_with_sigbn_of_every_rank_are_told() -> None:
    assert has_sigbn({"": mixed("sigbn").state_dict()}, mixed("bn"))
    assert not has_sigbn({"": mixed("bn").state_dict()}, mixed("bn"))


def test_sync_batchnorm_becomes_a_sigbn_that_synchronises(monkeypatch: pytest.MonkeyPatch) -> None:
    """What two processes do with it: test_distributed. Alone it is SigBN of any rank."""
    layers = nn.SyncBatchNorm.convert_sync_batchnorm(Mixed(), process_group="mine")
    model = convert_batchnorm(layers)
    sync.synchronise(model)  # they do so by themselves
    for name, layer in norm.scaled_norms(model):
        assert type(layer) is SigmoidSyncBatchNorm, name
        assert layer.process_group == "mine"
        assert "forward" not in vars(layer)
    for rank, shape in RANKS.items():
        _, ours = both(rank)
        alone, plain, x = SigmoidSyncBatchNorm(5), ours(5), torch.randn(shape)
        plain.load_state_dict(alone.state_dict())
        assert torch.equal(alone(x), plain(x))
    asked = []
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda group: asked.append(group) or 1)
    model(torch.randn(4, 1, 3, 6, 6))
    assert asked == ["mine"] * 4

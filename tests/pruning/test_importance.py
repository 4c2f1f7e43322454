"""Importances: whatever ranks the channels, the pruned network computes what the masked does."""

import copy
from typing import Any

import pytest
import torch
import torchvision
from masking import difference, randomise
from torch import Tensor, nn
from torch.nn import functional as F

from rni_pl.errors import PruningError
from rni_pl.pruning import Taylor, prune
from rni_pl.pruning.importance import IMPORTANCES, rows_of

OTHERS = [name for name in IMPORTANCES if name not in ("scale", "taylor")]
FAMILIES = {
    "alexnet": 64, "convnext_tiny": 32, "densenet121": 32, "efficientnet_b0": 32, "googlenet": 32,
    "inception_v3": 96, "maxvit_t": 224, "mnasnet0_5": 32, "mobilenet_v3_small": 32,
    "regnet_y_400mf": 32, "resnet18": 32, "resnext50_32x4d": 32, "shufflenet_v2_x0_5": 32,
    "squeezenet1_0": 64, "swin_t": 64, "vgg11": 32, "vit_b_16": 224,
}  # fmt: skip
SLOW = {"maxvit_t", "vit_b_16", "vgg11", "alexnet", "convnext_tiny", "swin_t"}


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def batches(size: int, count: int = 2) -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(4, 3, size, size), torch.randint(0, 10, (4,))) for _ in range(count)]


@pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in FAMILIES],
)
def test_every_importance_prunes_every_family(family: str) -> None:
    """That pruned equals masked is checked on the way, see `rni_pl.pruning.verify`."""
    model = torchvision.models.get_model(family, weights=None, num_classes=10)
    model = randomise(model).eval()
    x = torch.randn(2, 3, FAMILIES[family], FAMILIES[family])
    for name in OTHERS:
        pruned, report = prune(model, x, 0.5, coupled=True, importance=name)
        assert report.removed == pytest.approx(0.5, abs=0.1)
        assert report.by == "rows"
        assert pruned(x).shape == (2, 10)
    taylor = Taylor().calibrated(model, batches(FAMILIES[family], 1), loss)
    _, report = prune(model, x, 0.5, importance=taylor)
    assert report.channels_pruned < report.channels_dense


class Planted(nn.Module):
    """Channels 3 and 5 of the first layer are useless: small, and read by nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 12, 3, padding=1)
        self.second = nn.Conv2d(12, 12, 3, padding=1)
        self.head = nn.Linear(12, 10)
        with torch.no_grad():
            self.first.weight[[3, 5]] *= 0.01
            self.second.weight[:, [3, 5]] = 0.0

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).relu()).relu().mean((2, 3)))


@pytest.mark.parametrize("name", ["l1", "l2", "taylor"])
def test_planted_useless_channels_rank_last(name: str) -> None:
    model = Planted()
    importance: Any = name
    if name == "taylor":
        importance = Taylor().calibrated(model, batches(8), loss)
    _, report = prune(model, torch.randn(1, 3, 8, 8), 0.08, importance=importance, min_channels=1)
    assert report.kept["first"] == [0, 1, 2, 4, *range(6, 12)]
    assert report.kept["second"] == list(range(12))


def test_gradients_of_taylor_leave_the_network_as_it_is() -> None:
    model = Planted().train()
    loss(model, batches(8)[0]).backward()
    before = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    taylor = Taylor().calibrated(model, batches(8), loss)
    assert all(map(torch.equal, before, (p.grad for p in model.parameters())))
    assert model.training
    by_hand = copy.deepcopy(model).eval()
    images = batches(8)
    scores = []
    taylor = Taylor().calibrated(model, images, loss)
    for batch in images:
        by_hand.zero_grad()
        loss(by_hand, batch).backward()
        weight = by_hand.first.weight
        scores.append((weight * weight.grad).sum((1, 2, 3)).abs())
    expected = torch.stack(scores).mean(0)
    assert torch.allclose(taylor.scores("first", model.first), expected, rtol=1e-4)


def test_taylor_without_gradients_says_so() -> None:
    with pytest.raises(PruningError, match="see its method calibrated"):
        prune(Planted(), torch.randn(1, 3, 8, 8), 0.5, importance="taylor")


@pytest.mark.parametrize(
    ("layer", "weight"),
    [
        (nn.Linear(5, 7), lambda w, c: w[c]),
        (nn.Conv1d(4, 6, 3, groups=2), lambda w, c: w[c]),
        (nn.ConvTranspose2d(4, 6, 3), lambda w, c: w[:, c]),
        (nn.ConvTranspose2d(4, 6, 3, groups=2), lambda w, c: w[2 * (c // 3) :][:2, c % 3]),
        (nn.Embedding(9, 5), lambda w, c: w[:, c]),
    ],
)
def test_rows_are_what_makes_a_channel(layer: Any, weight: Any) -> None:
    rows = rows_of(layer)
    for c, row in enumerate(rows):
        assert torch.equal(row.sort().values, weight(layer.weight, c).flatten().sort().values)


def test_rows_of_a_transposed_convolution_silence_its_channels() -> None:
    layer, x = nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False), torch.randn(1, 4, 5, 5)
    for c in range(6):
        silent = copy.deepcopy(layer)
        with torch.no_grad():
            silent.weight[2 * (c // 3) : 2 * (c // 3) + 2, c % 3] = 0.0
        made = silent(x).abs().sum((0, 2, 3))
        assert rows_of(silent)[c].abs().sum() == 0
        assert (made == 0).tolist() == [d == c for d in range(6)]


def test_a_function_of_ones_own() -> None:
    def last_first(layer: nn.Module) -> Tensor:
        return torch.arange(len(layer.weight), 0, -1.0)

    model, x = Planted().eval(), torch.randn(2, 3, 8, 8)
    pruned, report = prune(model, x, 0.5, scope="local", importance=last_first)
    assert report.kept == {"first": list(range(6)), "second": list(range(6))}
    masked = copy.deepcopy(model)
    with torch.no_grad():
        for layer in (masked.first, masked.second):
            layer.weight[6:], layer.bias[6:] = 0.0, 0.0
    assert difference(pruned(x), masked(x)) < 1e-5


@pytest.mark.parametrize(
    ("importance", "message"),
    [
        ("l3", "prune.importance='l3' is unknown; allowed: scale, l1, l2"),
        (3, "is unknown"),
        (lambda layer: torch.ones(3), r"gives first scores of shape \(3,\), for 12 channels"),
        (lambda layer: torch.full((len(layer.weight),), torch.nan), "are not finite"),
    ],
)
def test_what_is_no_importance_is_refused(importance: Any, message: str) -> None:
    with pytest.raises(PruningError, match=message):
        prune(Planted(), torch.randn(1, 3, 8, 8), 0.5, importance=importance)


def test_layers_are_compared_by_their_mean() -> None:
    """A layer with larger weights does not lose less."""
    model = Planted()
    with torch.no_grad():
        model.second.weight *= 100
    _, report = prune(model, torch.randn(1, 3, 8, 8), 0.5, importance="l2", min_channels=1)
    assert len(report.kept["second"]) < 10

"""Selection by hand-made scores: ties, floors, multiples, budgets, valleys."""

import pytest
import torch
from torch import Tensor, nn

from rni_pl.cost import macs
from rni_pl.errors import PruningError
from rni_pl.norm.valley import find_valley
from rni_pl.pruning import prune
from rni_pl.pruning.selection import Candidates, Floor, cut_to_budget
from rni_pl.training.finetuning import _warn_if_missed


def candidates(*layers: list[float], width: int = 1) -> Candidates:
    """Scores layer by layer; each group stands for `width` channels."""
    scores = torch.tensor([score for layer in layers for score in layer], dtype=torch.float64)
    layer_set = torch.tensor([i for i, layer in enumerate(layers) for _ in layer])
    return Candidates(
        groups=torch.arange(1, len(scores) + 1),
        scores=scores,
        channels=torch.full((len(scores),), width),
        layer_set=layer_set,
        widths=[(width,)] * len(layers),
    )


def kept(
    found: Candidates, ratio: float, scope: str = "global", floor: Floor | None = None
) -> list[int]:
    mask = found.keep_above(found.thresholds(ratio, scope), floor or Floor(min_channels=1))
    return mask.nonzero().flatten().tolist()


def test_score_at_the_threshold_goes() -> None:
    assert kept(candidates([1, 2, 3, 4, 5]), 0.5) == [3, 4]


def test_threshold_is_the_interpolated_quantile() -> None:
    found = candidates([4.0, 0.0, 1.0, 2.0])
    assert found.quantile(0.5) == pytest.approx(1.5)
    found.channels = torch.tensor([1, 3, 1, 1])
    assert found.quantile(0.5) == pytest.approx(0.5)


def test_global_ranks_all_layers_local_each() -> None:
    layers = candidates([1, 2, 3, 4], [10, 20, 30, 40])
    assert kept(layers, 0.5) == [3, 4, 5, 6, 7]
    assert kept(layers, 0.5, "local") == [2, 3, 6, 7]


def test_floor_keeps_the_highest() -> None:
    layers = candidates([4, 1, 3, 2], [10, 20, 30, 40])
    assert kept(layers, 0.6, floor=Floor(3)) == [0, 2, 3, 5, 6, 7]


@pytest.mark.parametrize(("width", "expected"), [(1, 4), (2, 2), (4, 1)])
def test_multiples_count_channels(width: int, expected: int) -> None:
    layer = candidates([float(i) for i in range(10)], width=width)
    assert len(kept(layer, 0.99, floor=Floor(1, round_to=4))) == expected


def test_a_layer_that_is_no_multiple_can_stay_whole() -> None:
    layer = candidates([float(i) for i in range(10)])
    assert len(kept(layer, 0.05, floor=Floor(1, round_to=4))) == 10
    assert len(kept(layer, 0.35, floor=Floor(1, round_to=4))) == 8


class Narrow(nn.Sequential):
    """48 channels in two layers."""

    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.Conv2d(16, 32, 3), nn.BatchNorm2d(32), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)),
        )


@pytest.mark.parametrize(
    ("options", "scores", "words"),
    [
        (
            {"ratio": 0.3},
            "mixed",
            "0.312 is removed: of the channels that can go, all go that score",
        ),
        (
            {"ratio": 0.3},
            "alike",
            "0.875 is removed: of the channels that can go, all go that score",
        ),
        ({"ratio": 0.8, "min_channels": 9}, "apart", "is removed: the floors .* have layers keep"),
        ({"ratio": 0.9, "min_channels": 1}, "apart", "is removed: the floors .* have layers keep"),
        ({"ratio": 0.3, "round_to": 16}, "apart", "is removed: the floors .* have layers keep"),
        ({"ratio": 0.9, "target": "macs", "min_channels": 9}, "apart", "or the network allow no"),
    ],
)
def test_why_another_share_is_removed(options: dict, scores: str, words: str) -> None:
    model = Narrow().eval()
    if scores != "alike":
        model[1].weight.data.copy_(1 + 3 * torch.arange(16))
        model[4].weight.data.copy_(100 * (scores == "apart") + 1.1 + 1.5 * torch.arange(32))
    pruned, report = prune(model, torch.zeros(1, 3, 32, 32), **options)
    figures = {
        "ratio": report.ratio,
        "target": report.target,
        "channels_dense": report.channels_dense,
        "channels_pruned": report.channels_pruned,
        "macs_dense": macs(model, [3, 32, 32]),
        "macs_pruned": macs(pruned, [3, 32, 32]),
    }
    with pytest.warns(UserWarning, match=words):
        _warn_if_missed(figures, report.limited)


def budget(costs: list[float], share: float) -> float:
    """Share removed when the groups with these costs go one by one."""
    total = sum(costs)

    def cut(ratio: float) -> Tensor:
        return torch.arange(len(costs)) >= round(ratio * len(costs))

    def removed(keep: Tensor) -> float:
        return sum(c for c, k in zip(costs, keep.tolist(), strict=True) if not k) / total

    return removed(cut_to_budget(cut, removed, share, len(costs)))


def test_budget_is_met_to_the_nearest_group() -> None:
    assert budget([1.0] * 1000, 0.5) == pytest.approx(0.5)
    assert budget([1.0] * 1000, 0.0) == 0.0
    assert budget([1.0] * 101, 0.5) == pytest.approx(51 / 101)  # 0.495 would be further off


def test_budget_stays_below_where_steps_are_large() -> None:
    assert budget([1.0] * 10, 0.58) == pytest.approx(0.5)
    assert budget([5.0, 1.0, 1.0], 0.5) == 0.0


def test_valley_between_two_modes() -> None:
    generator = torch.Generator().manual_seed(0)
    receded = 10 ** (torch.randn(400, generator=generator) * 0.3 - 4)
    strong = 10 ** (torch.randn(600, generator=generator) * 0.1 - 0.3)
    found = find_valley(torch.cat([receded, strong]))
    assert found is not None
    assert found.divides
    assert found.share == pytest.approx(0.4, abs=0.005)
    assert 1e-3 < found.score < 0.3


def test_no_valley_in_one_mode() -> None:
    generator = torch.Generator().manual_seed(0)
    found = find_valley(10 ** (torch.randn(1000, generator=generator) * 0.3))
    assert found is None or not found.divides
    assert find_valley(torch.ones(50)) is None
    few = torch.cat([torch.full((5,), 1e-6), torch.rand(995, generator=generator) + 1])
    found = find_valley(few)  # half a percent is an outlier, no mode
    assert found is None or not found.divides


def test_auto_ratio_cuts_at_the_valley() -> None:
    from masking import randomise

    from rni_pl import models
    from rni_pl.pruning import prune

    model = models.resnet20(norm="sigbn")
    layer = model.layer1[0].bn1.weight.data
    with pytest.raises(PruningError, match=r"auto.*give a ratio"):
        prune(model, torch.zeros(1, 3, 32, 32), "auto")
    randomise(model)
    generator = torch.Generator().manual_seed(0)
    for block in (*model.layer1, *model.layer2, *model.layer3):
        gamma = block.bn1.weight.data
        gamma.copy_(2 + 0.2 * torch.randn(gamma.shape, generator=generator))
        gamma[: len(gamma) // 4] -= 12
    assert layer[0] < -9
    _, report = prune(model, torch.zeros(1, 3, 32, 32), "auto")
    assert report.kept["layer1.0.bn1"] == list(range(4, 16))
    assert report.channels_pruned == 0.75 * report.channels_dense


def test_the_valley_is_one_of_all_layers() -> None:
    with pytest.raises(PruningError, match=r"auto with prune\.scope=local is not allowed"):
        prune(nn.Conv2d(3, 4, 1), torch.zeros(1, 3, 8, 8), "auto", scope="local")

"""The pruned network computes what the unpruned one does with the removed scales at 0."""

import pytest
import torch
from masking import difference, masked, randomise
from torch import Tensor, nn

from rni_pl import models
from rni_pl.errors import PruningError
from rni_pl.pruning import prune
from rni_pl.pruning.structure import resize, structure_of


@pytest.mark.parametrize("norm", ["bn", "sigbn"])
@pytest.mark.parametrize("arch", ["vgg16", "resnet56", "resnet20"])
@pytest.mark.parametrize(("ratio", "scope"), [(0.3, "global"), (0.5, "local"), (0.9, "global")])
@torch.no_grad()
def test_pruned_equals_masked(arch: str, norm: str, ratio: float, scope: str) -> None:
    model = randomise(getattr(models, arch)(norm=norm)).double().eval()
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    before = model(x)
    pruned, report = prune(model, x[:1], ratio, scope)
    assert report.channels_pruned < report.channels_dense
    expected = masked(model, report)(x)
    assert difference(pruned(x), expected) < 1e-5
    assert torch.equal(model(x), before), "the given model was changed"
    pruned32, expected32 = pruned.float()(x.float()), masked(model, report).float()(x.float())
    assert difference(pruned32, expected32) < 1e-4


def test_pruned_network_is_made_of_the_same_classes_and_trains() -> None:
    model = models.resnet20(norm="sigbn")
    pruned, _ = prune(model, torch.zeros(1, 3, 32, 32), 0.5)
    assert [type(m) for m in pruned.modules()] == [type(m) for m in model.modules()]
    assert pruned.training
    pruned(torch.randn(4, 3, 32, 32)).square().sum().backward()
    for name, parameter in pruned.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.shape == parameter.shape


def test_resnet_prunes_the_first_norm_of_each_block_alone() -> None:
    _, report = prune(models.resnet20(), torch.zeros(1, 3, 32, 32), 0.5)
    blocks = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(3)]
    assert list(report.kept) == [f"{block}.bn1" for block in blocks]
    assert set(report.skipped) == {"bn1", *(f"{block}.bn2" for block in blocks)}
    assert all("residual" in reason for reason in report.skipped.values())


def test_resize_rebuilds_the_pruned_network() -> None:
    for arch in ("vgg16", "resnet20"):
        model = getattr(models, arch)(norm="sigbn")
        pruned, _ = prune(model, torch.zeros(1, 3, 32, 32), 0.7)
        again = resize(getattr(models, arch)(norm="sigbn"), structure_of(pruned))
        again.load_state_dict(pruned.state_dict())
        x = torch.randn(2, 3, 32, 32)
        assert torch.equal(again.eval()(x), pruned.eval()(x))


def test_channel_with_nan_free_scores_only_lowest_go() -> None:
    model = models.vgg16()
    norm = model.get_submodule("features.1")
    norm.weight.data = torch.linspace(0.01, 0.64, 64)
    _, report = prune(model, torch.zeros(1, 3, 32, 32), 0.5, "local")
    assert report.kept["features.1"] == list(range(32, 64))


def test_every_layer_keeps_min_channels() -> None:
    model = randomise(models.vgg16())
    model.get_submodule("features.1").weight.data.fill_(1e-6)
    _, report = prune(model, torch.zeros(1, 3, 32, 32), 0.5)
    assert len(report.kept["features.1"]) == 3
    _, report = prune(model, torch.zeros(1, 3, 32, 32), 0.5, min_channels=8)
    assert len(report.kept["features.1"]) == 8


def test_ratio_zero_removes_nothing() -> None:
    model = randomise(models.resnet20())
    pruned, report = prune(model, torch.zeros(1, 3, 32, 32), 0.0)
    assert report.channels_pruned == report.channels_dense == 336
    assert structure_of(pruned) == structure_of(model)


@pytest.mark.parametrize(
    ("ratio", "scope", "message"),
    [
        (1.0, "global", "prune.ratio=1.0 is out of range"),
        (-0.1, "global", "0 <= ratio < 1"),
        (float("nan"), "global", "prune.ratio=nan"),
        ("half", "global", "prune.ratio='half'"),
        (0.5, "everywhere", "prune.scope='everywhere' is unknown; allowed: global, local"),
        (0.99, "global", "leaves too little"),
    ],
)
def test_bad_requests_are_refused(ratio: float, scope: str, message: str) -> None:
    with pytest.raises(PruningError, match=message.replace("(", r"\(")) as caught:
        prune(models.resnet20(), torch.zeros(1, 3, 32, 32), ratio, scope)
    assert "\n" not in str(caught.value)


def test_network_without_batchnorm_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 900, 10))
    with pytest.raises(PruningError, match="it has no BatchNorm with scales"):
        prune(model, torch.zeros(1, 3, 32, 32), 0.5)


def test_wrong_example_is_refused() -> None:
    with pytest.raises(PruningError, match="cannot run on the example inputs"):
        prune(models.resnet20(), torch.zeros(1, 4, 32, 32), 0.5)


def test_unknown_operation_leaves_its_layer_whole() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
            self.b = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
            self.c = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
            self.fc = nn.Linear(8, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = self.b(torch.cumsum(self.a(x), dim=1))
            return self.fc(self.c(x).mean((2, 3)))

    model = randomise(Odd()).eval()
    x = torch.randn(2, 3, 16, 16)
    pruned, report = prune(model, x, 0.5)
    assert list(report.kept) == ["b.1", "c.1"]
    assert list(report.skipped) == ["a.1"]
    assert report.skipped["a.1"].startswith("feeds cumsum (test_pruning.py:")
    with torch.no_grad():
        assert difference(pruned(x), masked(model, report)(x)) < 1e-4

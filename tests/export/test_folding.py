"""Norm layers folded into convolutions, and widths filled up, compute the same."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from checkpoint_files import Chain, as_trained
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import rni_pl
from rni_pl import convert_batchnorm
from rni_pl.export import exporting
from rni_pl.export.aligning import align
from rni_pl.export.folding import fold
from rni_pl.norm import scaled_norms
from rni_pl.pruning import prune
from rni_pl.pruning.trace import trace

OURS = ["vgg16", "resnet20"]


@pytest.mark.parametrize("norm", ["bn", "sigbn"])
@pytest.mark.parametrize(
    "name", ["vgg16", "resnet20", "resnet50", "mobilenet_v2", "densenet121", "efficientnet_b0"]
)
@torch.no_grad()
def test_folding_is_exact(name: str, norm: str) -> None:
    home = rni_pl.models if name in OURS else torchvision.models
    model = getattr(home, name)(num_classes=10)
    model = as_trained(convert_batchnorm(model) if norm == "sigbn" else model).double()
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    folded = fold(model, x)
    assert relative(folded(x), model(x)) < 1e-10
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    left = len(list(scaled_norms(folded)))
    if name == "densenet121":  # its norms are in front of the convolutions, but for a few
        assert 0 < left < len(list(scaled_norms(model)))
    else:
        assert left == 0


def relative(a: Tensor, b: Tensor) -> float:
    assert b.abs().max() > 0.1
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("norm", ["bn", "sigbn"])
@torch.no_grad()
def test_activations_that_norms_carry_stay(norm: str) -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("efficientnet_b0", num_classes=10)
    model = as_trained(convert_batchnorm(model) if norm == "sigbn" else model).double()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    folded = fold(model, x)
    assert relative(folded(x), model(x)) < 1e-10
    assert not list(scaled_norms(folded))
    assert isinstance(folded.get_submodule("bn1.act"), nn.SiLU)


class Awkward(nn.Module):
    """Every norm layer here has a reason to stay, but `plain` and the one under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.read_twice, self.bn1 = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.called_twice, self.bn2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.bn_twice, self.bn3 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.weight_read, self.bn4 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.odd, self.bn5 = Standardised(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.untracked = nn.Conv2d(4, 4, 3, padding=1)
        self.bn6 = nn.BatchNorm2d(4, track_running_stats=False)
        self.aliased, self.bn7 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.other_name = self.bn7
        self.plain, self.bn8 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4, affine=False)
        self.fc = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.read_twice(x)
        x = self.bn1(y) + y
        x = self.bn2(self.called_twice(self.called_twice(x)))
        x = self.bn3(self.bn3(self.bn_twice(x)))
        x = self.bn4(self.weight_read(x)) + self.weight_read.weight.mean()
        x = self.bn6(self.untracked(self.bn5(self.odd(x))))
        x = self.bn8(self.plain(self.other_name(self.aliased(x))))
        return self.fc(x.mean((2, 3)))


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight / self.weight.norm(), self.bias)


@torch.no_grad()
def test_norms_that_cannot_be_folded_stay() -> None:
    model = Awkward()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None:
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
    model = model.double().eval()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    folded = fold(model, x)
    assert relative(folded(x), model(x)) < 1e-10
    left = [name for name, m in folded.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert left == ["bn1", "bn2", "bn3", "bn4", "bn5", "bn6"]


def doubled(_: nn.Module, __: object, output: Tensor) -> Tensor:
    return 2 * output


# What is done to a network, and the norm layers that stay for it.
UNCOMMON = {
    "parametrized weight_norm": (lambda m: parametrizations.weight_norm(m.conv1), ["bn1"]),
    "parametrized spectral_norm": (lambda m: parametrizations.spectral_norm(m.conv1), ["bn1"]),
    "weight_norm": (lambda m: nn.utils.weight_norm(m.conv1), ["bn1"]),
    "spectral_norm": (lambda m: nn.utils.spectral_norm(m.conv1), ["bn1"]),
    "weight_norm of the head": (lambda m: nn.utils.weight_norm(m.fc), []),
    "parametrized norm": (lambda m: parametrizations.weight_norm(m.bn1, dim=None), ["bn1"]),
    "hook of a convolution": (lambda m: m.conv2.register_forward_hook(doubled), ["bn2"]),
    "hook of a norm": (lambda m: m.bn2.register_forward_hook(doubled), ["bn2"]),
    "hook before a norm": (
        lambda m: m.bn2.register_forward_pre_hook(lambda _, given: (2 * given[0],)),
        ["bn2"],
    ),
}


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize("change", UNCOMMON)
def test_layers_with_hooks_or_computed_weights_stay(change: str) -> None:
    model = as_trained(Chain())
    do, left = UNCOMMON[change]
    do(model)
    deployed = exporting.deployable(model, [3, 8, 8])
    x = torch.randn(2, 3, 8, 8)
    assert relative(deployed(x).detach(), model(x).detach()) < 1e-5
    assert [name for name, m in deployed.named_modules() if isinstance(m, nn.BatchNorm2d)] == left


# Network, ratio, whether coupled channels go too, and whether every width can be filled up.
FILLED = [
    ("vgg16", 0.5, False, True),
    ("vgg16", 0.9, False, True),
    ("resnet20", 0.5, False, True),
    ("resnet20", 0.5, True, False),  # zero channels of the shortcuts have their places
    ("mobilenet_v2", 0.5, True, True),
    ("googlenet", 0.5, True, True),
    ("efficientnet_b0", 0.5, True, False),
    ("shufflenet_v2_x1_0", 0.5, True, False),
]


@pytest.mark.parametrize(("name", "ratio", "coupled", "wholly"), FILLED)
@torch.no_grad()
def test_filled_up_networks_compute_the_same(
    name: str, ratio: float, coupled: bool, wholly: bool
) -> None:
    home = rni_pl.models if name in OURS else torchvision.models
    options = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    model = as_trained(getattr(home, name)(num_classes=10, **options)).double()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    pruned, _ = prune(model, x, ratio, coupled=coupled)
    folded = fold(pruned, x)
    before = odd(folded)
    filled = align(folded, trace(pruned, x), 4)
    assert relative(filled(x), pruned(x)) < 1e-10
    assert odd(folded) == before > 0, "the given network was changed"
    assert odd(filled) == 0 if wholly else 0 < odd(filled) < before / 2


def odd(model: nn.Module) -> int:
    """Number of convolutions whose outputs are no multiple of four."""
    return sum(m.out_channels % 4 > 0 for m in model.modules() if isinstance(m, nn.Conv2d))


class Fixed(nn.Module):
    """A width stands in the code, so no channel can be added."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        return self.fc(x.view(-1, 6, 36).mean(2))


def test_widths_that_stand_in_the_code_stay() -> None:
    model = as_trained(Fixed())
    with pytest.warns(UserWarning, match="widths are fixed in the network's code"):
        deployed = exporting.deployable(model, [3, 8, 8])
    assert deployed.conv.out_channels == 6
    assert isinstance(deployed.bn, nn.Sequential)


class Checked(Chain):
    """A forward that checks its own width, as the error that is given to it."""

    def __init__(self, error: type[Exception]) -> None:
        super().__init__()
        self.error = error

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        if x.shape[1] != 6:
            raise self.error("the wrong width")
        return self.fc(self.bn2(self.conv2(x)).relu().mean((2, 3)))


@pytest.mark.parametrize("error", [ValueError, AssertionError, KeyError])
def test_widths_that_the_code_checks_stay(error: type[Exception]) -> None:
    model = as_trained(Checked(error))
    with pytest.warns(UserWarning, match="widths are fixed in the network's code"):
        deployed = exporting.deployable(model, [3, 8, 8])
    x = torch.randn(2, 3, 8, 8)
    assert relative(deployed(x).detach(), model(x).detach()) < 1e-5
    assert deployed.conv1.out_channels == 6


def test_align_is_a_choice(command: Callable, pruned: Path) -> None:
    widths = []
    for multiple in (1, 4):
        given = (f"checkpoint={pruned}", "output=model.pt2", f"align={multiple}")
        assert command("export", *given).status == 0
        weights = torch.export.load("model.pt2").state_dict
        widths.append({len(w) % 4 for key, w in weights.items() if "conv" in key})
    assert len(widths[0]) > 1
    assert widths[1] == {0}

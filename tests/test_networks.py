"""Networks as people bring them: pruned exactly, and everything works afterwards."""

import copy

import pytest
import torch
import torchvision
from test_pruning import difference, masked, randomise
from torch import nn
from torch.nn import functional as F

from rni_pl import convert_batchnorm
from rni_pl.norm import SigmoidBatchNormAct2d
from rni_pl.pruning import prune
from rni_pl.pruning.cost import CostModel, macs, parameter_count
from rni_pl.pruning.graph import trace
from rni_pl.pruning.surgery import resize, structure_of

timm = pytest.importorskip("timm")

# Builders of torchvision's networks, and the smallest image they take.
TORCHVISION = {
    "resnet18": 32,
    "resnet50": 32,
    "resnext50_32x4d": 32,
    "wide_resnet50_2": 32,
    "vgg16_bn": 32,
    "mobilenet_v2": 32,
    "mobilenet_v3_large": 32,
    "efficientnet_b0": 32,
    "densenet121": 32,
    "shufflenet_v2_x1_0": 32,
    "regnet_y_400mf": 32,
    "googlenet": 32,
    "inception_v3": 75,
    "mnasnet1_0": 32,
}
REQUESTS = [
    {"ratio": 0.5, "scope": "global", "coupled": False},
    {"ratio": 0.9, "scope": "local", "coupled": False},
    {"ratio": 0.5, "scope": "local", "coupled": True},
    {"ratio": 0.9, "scope": "global", "coupled": True},
]


def network(name: str) -> nn.Module:
    options = {}
    if name in ("googlenet", "inception_v3"):
        options = {"aux_logits": False, "init_weights": False}
    return getattr(torchvision.models, name)(num_classes=10, **options)


@pytest.fixture(scope="module", params=list(TORCHVISION))
def dense(request: pytest.FixtureRequest) -> tuple[str, nn.Module]:
    torch.manual_seed(0)
    return request.param, randomise(network(request.param)).eval()


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda r: "-".join(map(str, r.values())))
def test_every_listed_network(dense: tuple[str, nn.Module], request_: dict) -> None:
    name, model = dense
    x = torch.randn(2, 3, TORCHVISION[name], TORCHVISION[name])
    pruned, report = prune(model, x, **request_)
    assert report.channels_pruned < 0.75 * report.channels_dense
    with torch.no_grad():
        assert difference(pruned(x), masked(model, report)(x)) < 1e-4

    pruned.train()
    F.cross_entropy(pruned(x), torch.tensor([0, 1])).backward()
    assert all(p.grad is not None for p in pruned.parameters())
    pruned.eval()

    rebuilt = resize(copy.deepcopy(model), structure_of(pruned))
    rebuilt.load_state_dict(pruned.state_dict())
    with torch.no_grad():
        assert torch.equal(rebuilt.eval()(x), pruned(x))


def test_costs_are_the_counters(dense: tuple[str, nn.Module]) -> None:
    name, model = dense
    shape = (3, TORCHVISION[name], TORCHVISION[name])
    graph = trace(model, torch.zeros(1, *shape))
    costs = CostModel(model, graph)
    keep = torch.ones(graph.size, dtype=torch.bool)
    assert costs.params(keep) == parameter_count(model)
    assert costs.macs(keep) == macs(model, shape)
    pruned, report = prune(model, torch.zeros(1, *shape), 0.5, coupled=True)
    for layer, kept in report.kept.items():
        units = graph.layers[layer].outputs
        keep[units] = False
        keep[units[kept]] = True
    assert costs.params(keep) == parameter_count(pruned)
    assert costs.macs(keep) == macs(pruned, shape)


@pytest.mark.parametrize("target", ["params", "macs"])
def test_budgets_are_met(dense: tuple[str, nn.Module], target: str) -> None:
    name, model = dense
    shape = (3, TORCHVISION[name], TORCHVISION[name])
    pruned, _ = prune(model, torch.zeros(1, *shape), 0.4, target=target, coupled=True)
    if target == "params":
        removed = 1 - parameter_count(pruned) / parameter_count(model)
    else:
        removed = 1 - macs(pruned, shape) / macs(model, shape)
    assert removed == pytest.approx(0.4, abs=0.01)


@pytest.mark.slow
def test_pruned_networks_export(dense: tuple[str, nn.Module]) -> None:
    name, model = dense
    x = torch.randn(2, 3, TORCHVISION[name], TORCHVISION[name])
    pruned, _ = prune(model, x, 0.5, coupled=True)
    program = torch.export.export(pruned, (x,))
    with torch.no_grad():
        assert torch.allclose(program.module()(x), pruned(x), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["resnet50", "densenet121", "mobilenet_v2", "shufflenet_v2_x1_0"])
def test_multiples_of_eight(name: str) -> None:
    model = randomise(network(name)).eval()
    dense_widths = {n: m.num_features for n, m in model.named_modules() if hasattr(m, "momentum")}
    _, report = prune(model, torch.zeros(1, 3, 32, 32), 0.5, round_to=8, coupled=True)
    for layer, kept in report.kept.items():
        assert len(kept) % 8 == 0 or dense_widths[layer] % 8 != 0, layer
    assert report.channels_pruned / report.channels_dense == pytest.approx(0.5, abs=0.01)


def test_auxiliary_heads_are_pruned_with_the_rest() -> None:
    model = torchvision.models.googlenet(num_classes=10, aux_logits=True, init_weights=False)
    randomise(model).eval()
    x = torch.randn(2, 3, 64, 64)
    pruned, report = prune(model, x, 0.5)
    assert "aux1.conv.bn" in report.kept
    with torch.no_grad():
        exact = copy.deepcopy(pruned).double()(x.double())
        assert difference(exact, masked(model, report).double()(x.double())) < 1e-9
    outputs = pruned.train()(x)
    assert [o.shape for o in outputs] == [(2, 10)] * 3


# One of each family of timm that torch.fx traces and that has channels to prune.
TIMM = [
    "resnet18", "resnet50d", "seresnet50", "ecaresnet50t", "resnetrs50", "res2net50_26w_4s",
    "resnest14d", "skresnet18", "legacy_seresnet18", "gcresnet33ts", "resnetblur50", "densenet121",
    "mobilenetv2_100", "mobilenetv3_small_050", "mobilenetv4_conv_small", "mnasnet_100",
    "efficientnet_b0", "tf_efficientnetv2_b0", "mixnet_s", "spnasnet_100", "fbnetc_100",
    "ghostnet_100", "ghostnetv2_100", "lcnet_050", "tinynet_e", "hardcorenas_a", "rexnet_100",
    "regnetx_002", "regnety_002", "regnetz_b16", "dla34", "dpn68", "hrnet_w18_small", "xception41",
    "selecsls42", "cspresnet50", "darknet53", "ese_vovnet19b_dw", "hgnetv2_b0", "tresnet_m",
    "resnetv2_50", "repghostnet_050", "semnasnet_050", "gernet_s", "repvit_m0_9",
    "test_efficientnet",
]  # fmt: skip


@pytest.mark.parametrize("name", TIMM)
@torch.no_grad()
def test_timm_families(name: str) -> None:
    model = randomise(timm.create_model(name, num_classes=10)).eval()
    size = 224 if name == "repvit_m0_9" else 64
    x = torch.randn(1, 3, size, size)
    pruned, report = prune(model, x, 0.5)
    assert report.channels_pruned < report.channels_dense
    assert all(report.skipped.values()), "each layer left whole has its reason"
    assert difference(pruned(x), masked(model, report)(x)) < 1e-4


def test_timm_norms_with_activation_become_sigbn() -> None:
    model = timm.create_model("efficientnet_b0", num_classes=10)
    before = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    activations = [type(m.act) for m in before]
    assert nn.SiLU in activations
    after = [m for m in convert_batchnorm(model).modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(isinstance(m, SigmoidBatchNormAct2d) and m.bias is None for m in after)
    assert [type(m.act) for m in after] == activations
    randomise(model).eval()
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    pruned, report = prune(model.double(), x, 0.5)
    with torch.no_grad():
        assert difference(pruned(x), masked(model, report)(x)) < 1e-9


def test_batchnorm_that_does_more_is_not_converted() -> None:
    class Doubled(nn.BatchNorm2d):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(input)

    with pytest.raises(ValueError, match="Doubled does more"):
        convert_batchnorm(nn.Sequential(Doubled(3)))


def test_shared_norm_stays_shared() -> None:
    norm = nn.BatchNorm2d(3)
    model = convert_batchnorm(nn.Sequential(norm, nn.Sequential(nn.ReLU(), norm)))
    assert model[0] is model[1][1]

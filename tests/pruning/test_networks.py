"""Networks as people bring them: pruned exactly, and everything works afterwards."""

import copy
from itertools import product
from pathlib import Path

import pytest
import torch
import torchvision
from masking import difference, masked, randomise
from torch import nn
from torch.nn import functional as F

from rni_pl import convert_batchnorm
from rni_pl.config import arch_name, compose_config, plain
from rni_pl.cost import macs, parameter_count
from rni_pl.errors import PruningError
from rni_pl.models import resnet20
from rni_pl.norm import SigmoidBatchNormAct2d, sync
from rni_pl.norm.calibration import recalibrate
from rni_pl.pruning import prune
from rni_pl.pruning.costs import Costs
from rni_pl.pruning.structure import resize, structure_of
from rni_pl.pruning.trace import trace
from rni_pl.runs.spec import ModelSpec, check_output, check_trusted

timm = pytest.importorskip("timm")
import zoo  # noqa: E402  needs timm
from zoo import Entry  # noqa: E402

REQUESTS = [
    {"ratio": ratio, "scope": scope, "coupled": coupled}
    for ratio, scope, coupled in product((0.5, 0.9), ("global", "local"), (False, True))
]


def names(value: object) -> str:
    return value.name if isinstance(value, Entry) else "-".join(map(str, value.values()))


@pytest.fixture(scope="module", params=zoo.TORCHVISION, ids=names)
def dense(request: pytest.FixtureRequest) -> tuple[Entry, nn.Module]:
    return request.param, request.param.build()


@pytest.mark.parametrize("request_", REQUESTS, ids=names)
def test_every_listed_network(dense: tuple[Entry, nn.Module], request_: dict) -> None:
    entry, model = dense
    x = entry.images()
    pruned, report = prune(model, x, **request_)
    assert report.channels_pruned < 0.75 * report.channels_dense
    with torch.no_grad():
        assert difference(pruned(x), masked(model, report)(x)) < 1e-4

    optimizer = torch.optim.SGD(pruned.train().parameters(), lr=0.01)
    F.cross_entropy(pruned(x), torch.tensor([0, 1])).backward()
    assert all(p.grad is not None for p in pruned.parameters())
    nn.utils.clip_grad_norm_(pruned.parameters(), 0.1)  # random scales make them very large
    optimizer.step()
    assert pruned.eval()(x).isfinite().all()

    rebuilt = resize(copy.deepcopy(model), structure_of(pruned))
    rebuilt.load_state_dict(pruned.state_dict())
    with torch.no_grad():
        assert torch.equal(rebuilt.eval()(x), pruned(x))


# Two of the eight requests for each network, other ones for the next.
SOME = [
    (entry, REQUESTS[place])
    for i, entry in enumerate(zoo.TORCHVISION)
    for place in (i % 4, 4 + (i + i // 4) % 4)
]


@pytest.mark.parametrize(("entry", "request_"), SOME, ids=names)
def test_checkpoint_and_export(entry: Entry, request_: dict, tmp_path: Path) -> None:
    x = entry.images()
    pruned, _ = prune(entry.build(), x, **request_)
    loaded = zoo.through_checkpoint(entry.spec, pruned, tmp_path / "pruned.ckpt")
    program = torch.export.export(loaded, (x,))
    with torch.no_grad():
        assert torch.equal(loaded(x), pruned(x))
        assert difference(program.module()(x), pruned(x)) < 1e-4


def test_every_listed_network_is_had_by_its_name() -> None:
    for entry in zoo.TORCHVISION:
        arch = plain(compose_config("train", ["arch=torchvision", f"arch.name={entry.name}"]).arch)
        assert arch_name(arch) == entry.name
        check_trusted(arch)


def independent_costs(model: nn.Module, x: torch.Tensor) -> tuple[int, int]:
    """Parameters and multiply-accumulates of one image, as fvcore counts them."""
    fvcore = pytest.importorskip("fvcore.nn")
    analysis = fvcore.FlopCountAnalysis(model.eval(), x[:1])
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    counted = analysis.by_operator()
    return fvcore.parameter_count(model)[""], int(counted["conv"] + counted["linear"])


@pytest.mark.filterwarnings("ignore")
def test_costs_are_the_counters(dense: tuple[Entry, nn.Module]) -> None:
    entry, model = dense
    x, shape = entry.images(1), entry.spec.image_shape
    graph = trace(model, x)
    costs = Costs(graph)
    keep = torch.ones(graph.size, dtype=torch.bool)
    assert costs.params(keep) == parameter_count(model)
    assert costs.macs(keep) == macs(model, shape)
    assert independent_costs(model, x) == (parameter_count(model), macs(model, shape))
    pruned, report = prune(model, x, 0.5, coupled=True)
    for layer, kept in report.kept.items():
        groups = graph.layers[layer].outputs
        keep[groups] = False
        keep[groups[kept]] = True
    assert costs.params(keep) == parameter_count(pruned)
    assert costs.macs(keep) == macs(pruned, shape)
    assert independent_costs(pruned, x) == (parameter_count(pruned), macs(pruned, shape))


@pytest.mark.parametrize("target", ["params", "macs"])
def test_budgets_are_met(dense: tuple[Entry, nn.Module], target: str) -> None:
    entry, model = dense
    shape = entry.spec.image_shape
    pruned, _ = prune(model, entry.images(1), 0.4, target=target, coupled=True)
    if target == "params":
        removed = 1 - parameter_count(pruned) / parameter_count(model)
    else:
        removed = 1 - macs(pruned, shape) / macs(model, shape)
    assert removed == pytest.approx(0.4, abs=0.01)


@pytest.mark.parametrize("name", ["resnet50", "densenet121", "mobilenet_v2", "shufflenet_v2_x1_0"])
def test_multiples_of_eight(name: str) -> None:
    model = zoo.find(name).build()
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


@pytest.mark.parametrize("entry", zoo.TIMM, ids=names)
@torch.no_grad()
def test_timm_families(entry: Entry) -> None:
    model, x = entry.build(), entry.images(1)
    pruned, report = prune(model, x, 0.5)
    assert report.channels_pruned < report.channels_dense
    assert all(report.skipped.values()), "each layer left whole has its reason"
    assert difference(pruned(x), masked(model, report)(x)) < 1e-4


@pytest.mark.parametrize("entry", zoo.COUPLED, ids=names)
@torch.no_grad()
def test_reparametrised_branches_are_coupled(entry: Entry) -> None:
    model, x = entry.build(), entry.images(1)
    with pytest.raises(PruningError, match="residual connection"):
        prune(model, x, 0.5)
    pruned, report = prune(model, x, 0.5, coupled=True)
    assert report.channels_pruned < 0.6 * report.channels_dense
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

    class WithActivation(Doubled):  # named as timm names them
        def __init__(self) -> None:
            super().__init__(3)
            self.drop, self.act = nn.Identity(), nn.ReLU()

    for norm in (Doubled(3), WithActivation()):
        with pytest.raises(ValueError, match=f"{type(norm).__name__} does more"):
            convert_batchnorm(nn.Sequential(norm))
        with pytest.raises(ValueError, match=f"{type(norm).__name__} does more"):
            sync.check(nn.Sequential(norm))


def test_looking_at_a_network_leaves_its_modes() -> None:
    model = resnet20()
    model.bn1.eval()  # frozen
    check_output(model, ModelSpec({"_target_": "rni_pl.models.resnet20"}, 10))
    macs(model, (3, 32, 32))
    recalibrate(model, [torch.randn(2, 3, 32, 32)])
    assert model.training
    assert model.layer1.training
    assert not model.bn1.training
    with pytest.raises(RuntimeError):
        macs(model, (5, 32, 32))
    assert model.training


def test_shared_norm_stays_shared() -> None:
    norm = nn.BatchNorm2d(3)
    model = convert_batchnorm(nn.Sequential(norm, nn.Sequential(nn.ReLU(), norm)))
    assert model[0] is model[1][1]

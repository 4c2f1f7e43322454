"""What the code of people's networks asks of results and sizes, and what it keeps on layers."""

import copy
from collections.abc import Callable

import pytest
import torch
from masking import check, difference, masked, prepared, randomise
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from unusual_networks import Net, Same, conv, own_conv, through

from rni_pl.cost import RECURRENT, macs_on
from rni_pl.errors import PruningError
from rni_pl.pruning import prune
from rni_pl.pruning.structure import resize, structure_of


def kept_on_itself(net: Net, x: Tensor) -> Tensor:
    net.features = net.stem(x)
    return net.head(net.features)


def relu_by_name(x: Tensor) -> Tensor:
    x = x - x.mean((2, 3), keepdim=True)
    torch.relu_(input=x)
    return x


PRUNED = {
    "asks for tensors": lambda: through(lambda x: x.flip(1) if isinstance(x, Tensor) else x),
    "asks for an attribute": lambda: through(
        lambda x: x.flip(1) if isinstance(x.mT, Tensor) else x
    ),
    "asks for parameters": lambda: through(
        lambda x: x if isinstance(x, nn.Parameter) else x.flip(1)
    ),
    "kept on itself": lambda: Net(kept_on_itself),
    "loop over rows": lambda: through(
        lambda x: torch.stack([x[:, :, i] for i in range(x.shape[2])], 2)
    ),
    "float of a size": lambda: through(lambda x: x / float(x.shape[2])),
    "whole number of rows": lambda: through(lambda x: x[:, :, : int(x.shape[2] / 2)]),
    "concatenated by name": lambda: Net(
        lambda net, x: net.head(torch.cat(tensors=[y := net.stem(x), y], dim=1)), 24
    ),
    "in place by name": lambda: through(relu_by_name),
    "zeros beside it": lambda: Net(
        lambda net, x: net.head(
            torch.cat([y := net.stem(x), torch.zeros((len(x), 4, *y.shape[2:]), dtype=y.dtype)], 1)
        ), 16
    ),
    "new tensors by rows": lambda: through(lambda x: x * torch.full((), x.shape[2] ** 0.5)),
}  # fmt: skip


@pytest.mark.parametrize("build", PRUNED.values(), ids=PRUNED)
def test_code_that_is_followed(build: Callable) -> None:
    report = check(*prepared(build), ratio=0.5)
    assert report.channels_pruned < 0.75 * report.channels_dense
    assert len(report.kept["stem.1"]) < 12


BY_WIDTH = {
    "a new tensor": (lambda x: x / torch.full((), x.shape[1] ** 0.5), "full"),
    "a sum of ones": (lambda x: x / torch.ones((1, x.shape[1])).sum(1, keepdim=True), "ones"),
    "a sum of a constant": (
        lambda x: x / torch.ones((1, 1), dtype=x.dtype).expand(1, x.shape[1]).sum(1), "expand"
    ),
    "a whole number": (
        lambda x: torch.cat([x[:, int(x.shape[1] / 2) :], x[:, : int(x.shape[1] / 2)]], 1), "slice"
    ),
    "a float": (lambda x: x / float(x.shape[1]), "div"),
    "a loop": (lambda x: sum(x / 2 for _ in range(x.shape[1])), "div"),
}  # fmt: skip


@pytest.mark.parametrize(("between", "why"), BY_WIDTH.values(), ids=BY_WIDTH)
def test_what_follows_from_the_number_of_channels_stays(between: Callable, why: str) -> None:
    report = check(*prepared(lambda: through(between)), ratio=0.5)
    assert why in report.skipped["stem.1"]
    assert len(report.kept["head.0.1"]) < 8


class ByLargest(Same):
    """Scales its weight by the largest of all: without some of them it may be another one."""

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(input, self.weight / self.weight.abs().max(), self.bias)


@pytest.mark.parametrize("seed", range(12))
def test_weights_scaled_by_their_largest_stay_whichever_that_is(seed: int) -> None:
    torch.manual_seed(seed)
    model, x = prepared(lambda: own_conv(ByLargest(12, 10, 3)))
    report = check(model, x, ratio=0.5)
    assert "feeds own" in report.skipped["stem.1"]


def test_single_channels_can_be_tried_out() -> None:
    model, x = prepared(lambda: own_conv(Same(12, 12, 3, groups=12)))
    model.norm, model.head = nn.BatchNorm2d(12).double().eval(), through(nn.Identity()).head
    model.head[0][0] = nn.Conv2d(12, 8, 3, padding=1)
    model = randomise(model).double().eval()
    assert check(model, x, ratio=0.5).skipped == {}


def test_layers_around_one_that_does_not_fit_are_pruned() -> None:
    def ghost(net: Net, x: Tensor) -> Tensor:
        x = net.stem(x)
        return net.head(torch.cat([x, net.cheap(x)], 1)[:, :20])

    report = check(*prepared(lambda: Net(ghost, 20, cheap=conv(12, 12, groups=12))), ratio=0.5)
    assert set(report.skipped) == {"stem.1", "cheap.1"}
    assert len(report.kept["head.0.1"]) < 8


def test_compiled_networks_are_pruned() -> None:
    model, x = prepared(lambda: through(nn.Identity()))
    model.compile(backend="eager")
    with torch.no_grad():
        pruned, _ = prune(model, x, 0.5)
        assert torch.equal(pruned(x), pruned.forward(x))
        assert not torch.allclose(pruned(x), model(x))


class Gained(nn.Conv2d):
    """Holds a parameter more than torch's layer, with a channel in each row."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.gain = nn.Parameter(torch.rand(self.out_channels, 1, 1, 1))

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(input, self.weight * self.gain, self.bias)


def test_layers_with_more_tensors_come_back_as_they_are() -> None:
    model, x = prepared(lambda: own_conv(Gained(12, 10, 3)))
    pruned, report = prune(model, x, 0.5)
    assert not report.skipped
    assert len(pruned.own.gain) == len(report.kept["norm"]) < 10
    rebuilt = resize(copy.deepcopy(model), structure_of(pruned))
    rebuilt.load_state_dict(pruned.state_dict())
    with torch.no_grad():
        assert torch.equal(rebuilt(x), pruned(x))
        assert difference(pruned(x), masked(model, report)(x)) < 1e-9


@pytest.mark.parametrize("images", [1, 2])
def test_positions_put_into_the_batch_count_as_positions(images: int) -> None:
    def pixelwise(net: Net, x: Tensor) -> Tensor:
        n, c, h, w = (y := net.stem(x)).shape
        rows = net.mix(y.permute(0, 2, 3, 1).reshape(-1, c))
        return net.head(rows.view(n, h, w, -1).permute(0, 3, 1, 2))

    model, x = prepared(lambda: Net(pixelwise, 64, mix=nn.Linear(12, 64)))
    x = x[:images]
    with torch.no_grad():
        pruned, _ = prune(model, x, 0.3, target="macs", min_channels=1)
        removed = 1 - macs_on(pruned, (x,), {}) / macs_on(model, (x,), {})
    assert removed == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize("weights", [False, True])
def test_attention_counts(weights: bool) -> None:
    class Attention(nn.MultiheadAttention):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x, x, x, need_weights=weights)[0]

    images, width = 7, 16
    projections, products = 4 * images * width**2, 2 * images**2 * width
    model = Attention(width, 2, batch_first=True)
    assert macs_on(model, (torch.randn(3, images, width),), {}) == projections + products
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_layers_count(kind: type[nn.RNNBase]) -> None:
    """Every weight that is no bias, in every step, in both directions."""
    model = kind(8, 16, num_layers=2, batch_first=True, bidirectional=True)
    matrices = sum(p.numel() for p in model.parameters() if p.dim() == 2)
    assert macs_on(model, (torch.zeros(3, 10, 8),), {}) == 10 * matrices


def test_recurrent_layers_count_as_much_on_a_gpu() -> None:
    with torch.device("meta"):
        weights = list(nn.LSTM(8, 16, num_layers=2, bidirectional=True).parameters())
        x, state = torch.zeros(10, 3, 8), torch.zeros(4, 3, 16)
    matrices = sum(p.numel() for p in weights if p.dim() == 2)
    counter = FlopCounterMode(display=False, custom_mapping=RECURRENT)
    with torch.no_grad(), counter:
        torch.ops.aten._cudnn_rnn(
            x, weights, 4, None, state, state, 2, 16, 0, 2, False, 0.0, False, True, [], None
        )
    assert counter.get_total_flops() == 2 * 30 * matrices


def test_what_is_no_network_is_refused() -> None:
    with pytest.raises(TypeError, match="model must be a network, not 'resnet56'"):
        prune("resnet56", torch.zeros(1, 3, 8, 8), 0.5)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_torchscript_is_refused() -> None:
    script = torch.jit.trace(nn.Conv2d(3, 4, 1), torch.zeros(1, 3, 8, 8))
    with pytest.raises(PruningError, match="the network is a ScriptModule: prune it before"):
        prune(script, torch.zeros(1, 3, 8, 8), 0.5)

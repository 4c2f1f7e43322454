"""Randomly composed networks keep the equality: masked computes what pruned does."""

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from masking import difference, masked, randomise
from torch import Tensor, nn
from torch.nn import functional as F

from rni_pl import convert_batchnorm
from rni_pl.cost import macs, parameter_count
from rni_pl.pruning import prune
from rni_pl.pruning.costs import Costs
from rni_pl.pruning.trace import trace


class Written(nn.Module):
    """An activation as code writes it, not as a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


# Each maps 0 to 0.
FUNCTIONS = [
    F.relu, torch.tanh, lambda x: F.silu(x, inplace=True), lambda x: x.clamp(min=0, max=6),
    lambda x: x * torch.sigmoid(x), lambda x: (x - 0.5 * x) / 2, lambda x: x * F.relu6(x + 3) / 6,
]  # fmt: skip
LAYERS = [nn.ReLU, nn.SiLU, nn.Hardswish, nn.Tanh, nn.LeakyReLU, nn.GELU, nn.PReLU]
ACTIVATIONS: list[Callable[[], nn.Module]] = [
    *LAYERS, *(functools.partial(Written, function) for function in FUNCTIONS),
]  # fmt: skip
Activation = Callable[[], nn.Module]


def conv_bn(inputs: int, outputs: int, kernel: int = 3, **options: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, **options),
        nn.BatchNorm2d(outputs),
    )


class Plain(nn.Module):
    """Convolution, norm, activation; perhaps strided."""

    def __init__(self, inputs: int, outputs: int, act: Activation, stride: int) -> None:
        super().__init__()
        self.body, self.act = conv_bn(inputs, outputs, stride=stride), act()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.body(x))


class Residual(nn.Module):
    """Two convolutions beside an identity or, with another width, zero-padded channels."""

    def __init__(self, inputs: int, outputs: int, act: Activation, stride: int) -> None:
        super().__init__()
        self.a, self.b = conv_bn(inputs, inputs + 4), conv_bn(inputs + 4, outputs, stride=stride)
        self.act, self.stride = act(), stride
        self.front, self.back = (outputs - inputs) // 2, (outputs - inputs + 1) // 2

    def shortcut(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], [0] * 4 + [self.front, self.back])

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.shortcut(x) + self.b(self.act(self.a(x))))


class Padded(Residual):
    """The same with the zero channels in a layer, which can be pruned too."""

    def __init__(self, inputs: int, outputs: int, act: Activation, stride: int) -> None:
        super().__init__(inputs, outputs, act, stride)
        self.pad = nn.ConstantPad3d((0, 0, 0, 0, self.front, self.back), 0.0)

    def shortcut(self, x: Tensor) -> Tensor:
        return self.pad(x[:, :, :: self.stride, :: self.stride])


class Projected(Residual):
    """The same with a strided 1x1 convolution in the shortcut."""

    def __init__(self, inputs: int, outputs: int, act: Activation, stride: int) -> None:
        super().__init__(inputs, outputs, act, stride)
        self.down = conv_bn(inputs, outputs, 1, stride=stride)

    def shortcut(self, x: Tensor) -> Tensor:
        return self.down(x)


class Inverted(nn.Module):
    """Expansion, depthwise convolution (perhaps without a norm of its own), gate, projection."""

    def __init__(self, inputs: int, outputs: int, act: Activation, stride: int) -> None:
        super().__init__()
        wide = inputs + 8
        self.expand, self.act = conv_bn(inputs, wide, 1), act()
        self.depthwise = conv_bn(wide, wide, groups=wide, stride=stride)
        if stride == 2:
            self.depthwise = self.depthwise[:1]
        self.squeeze, self.excite = nn.Conv2d(wide, 4, 1), nn.Conv2d(4, wide, 1)
        self.project = conv_bn(wide, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(self.act(self.expand(x)))
        gate = self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True))))
        return self.project(x * torch.sigmoid(gate))


class Branches(nn.Module):
    """Concatenated branches, one of them pooled."""

    def __init__(self, inputs: int, outputs: int, act: Activation, stride: int) -> None:
        super().__init__()
        self.a = conv_bn(inputs, outputs // 2, 1, stride=stride)
        self.b = conv_bn(inputs, outputs - outputs // 2 - 6, stride=1)
        self.pool, self.stride = nn.AvgPool2d(3, stride, 1), stride
        self.c = conv_bn(inputs, 6)
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.max_pool2d(self.c(x), 3, self.stride, 1)
        return self.act(torch.cat([self.a(x), self.pool(self.b(x)), pooled], 1))


class Dense(nn.Module):
    """Pre-activation layer whose input is passed on beside its output."""

    def __init__(self, inputs: int, outputs: int, act: Activation, stride: int) -> None:
        super().__init__()
        self.norm, self.act = nn.BatchNorm2d(inputs), act()
        self.grow = nn.Conv2d(inputs, 6, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(inputs + 6)
        self.transition = nn.Conv2d(inputs + 6, outputs, 1, stride=stride)
        self.last = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x, self.grow(self.act(self.norm(x)))], 1)
        return self.act(self.last(self.transition(self.act(self.norm2(x)))))


class Shuffled(nn.Module):
    """Split in halves, one worked on, concatenated and shuffled."""

    def __init__(self, inputs: int, outputs: int, act: Activation, stride: int) -> None:
        super().__init__()
        self.enter = Plain(inputs, outputs, act, stride)
        self.worked = conv_bn(outputs // 2, outputs // 2)
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        one, two = self.split(x)
        x = torch.cat([one, self.act(self.worked(two))], 1)
        return self.shuffle(x)

    def split(self, x: Tensor) -> Any:
        return x.chunk(2, 1)

    def shuffle(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class ShuffledByLayer(Shuffled):
    """The same with torch's layer, and a split by computed size."""

    def __init__(self, inputs: int, outputs: int, act: Activation, stride: int) -> None:
        super().__init__(inputs, outputs, act, stride)
        self.shuffle = nn.ChannelShuffle(2)  # type: ignore[assignment]

    def split(self, x: Tensor) -> Any:
        return torch.split(x, x.size(1) // 2, dim=1)


class Grouped(nn.Module):
    """A bottleneck with a grouped convolution."""

    groups = 4

    def __init__(self, inputs: int, outputs: int, act: Activation, stride: int) -> None:
        super().__init__()
        self.a, self.b = conv_bn(inputs, 16, 1), conv_bn(16, 16, groups=self.groups, stride=stride)
        self.c, self.act = conv_bn(16, outputs, 1), act()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.c(self.act(self.b(self.act(self.a(x))))))


class WideGroups(Grouped):
    """Few groups of many channels, of which each loses the same ones."""

    groups = 2


class Net(nn.Module):
    """Blocks in a row, and a classifier behind a pool or a flattened map."""

    def __init__(self, blocks: list[nn.Module], width: int, flatten: bool) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveMaxPool2d(2) if flatten else nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(width * (4 if flatten else 1), 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.flatten(self.pool(self.blocks(x)), 1))


BLOCKS = [
    Plain, Residual, Padded, Projected, Inverted, Branches, Dense, Shuffled, ShuffledByLayer,
    Grouped, WideGroups,
]  # fmt: skip


@st.composite
def networks(draw: st.DrawFn) -> nn.Module:
    torch.manual_seed(draw(st.integers(0, 2**16)))
    width, blocks = 16, [Plain(3, 16, nn.ReLU, 1)]
    for _ in range(draw(st.integers(1, 5))):
        outputs = width + 2 * draw(st.integers(0, 4))
        act = draw(st.sampled_from(ACTIVATIONS))
        kind = draw(st.sampled_from(BLOCKS))
        blocks.append(kind(width, outputs, act, draw(st.sampled_from([1, 1, 2]))))
        width = outputs
    model = Net(blocks, width, draw(st.booleans()))
    if draw(st.booleans()):
        model = convert_batchnorm(model)
    return randomise(model).double().eval()


@given(
    model=networks(),
    ratio=st.sampled_from([0.2, 0.5, 0.7]),
    scope=st.sampled_from(["global", "local"]),
    coupled=st.booleans(),
    round_to=st.sampled_from([1, 4]),
    target=st.sampled_from(["channels", "params", "macs"]),
)
@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
def test_masked_equals_pruned(model, ratio, scope, coupled, round_to, target) -> None:
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    options = {"coupled": coupled, "round_to": round_to, "target": target, "min_channels": 1}
    pruned, report = prune(model, x, ratio, scope, **options)
    with torch.no_grad():
        assert difference(pruned(x), masked(model, report)(x)) < 1e-6
        assert pruned.train()(x).shape == (2, 5)


@given(model=networks(), coupled=st.booleans())
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_costs_are_counted(model, coupled) -> None:
    x = torch.zeros(1, 3, 16, 16, dtype=torch.float64)
    graph = trace(model, x)
    costs = Costs(graph)
    keep = torch.ones(graph.size, dtype=torch.bool)
    dense = costs.params(keep), costs.macs(keep)
    pruned, report = prune(model, x, 0.5, coupled=coupled)
    for layer, kept in report.kept.items():
        groups = graph.layers[layer].outputs
        keep[groups] = False
        keep[groups[kept]] = True
    assert dense[0] - costs.params(keep) == parameter_count(model) - parameter_count(pruned)
    assert dense[1] == macs(model, x.shape[1:])
    assert costs.macs(keep) == macs(pruned, x.shape[1:])


class Odd(nn.Module):
    """An operation that no engine can follow, in the middle of a network."""

    def forward(self, x: Tensor) -> Tensor:
        return x.cumsum(1)


def test_unsupported_operation_leaves_its_layer_whole() -> None:
    blocks = [Plain(3, 8, nn.ReLU, 1), Plain(8, 10, nn.ReLU, 1), Odd(), Plain(10, 12, nn.SiLU, 1)]
    model = randomise(Net(blocks, 12, flatten=True)).double().eval()
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    pruned, report = prune(model, x, 0.5)
    assert list(report.kept) == ["blocks.0.body.1", "blocks.3.body.1"]
    assert list(report.skipped) == ["blocks.1.body.1"]
    assert "cumsum" in report.skipped["blocks.1.body.1"]
    with torch.no_grad():
        assert difference(pruned(x), masked(copy.deepcopy(model), report)(x)) < 1e-9

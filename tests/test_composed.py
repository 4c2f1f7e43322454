"""Randomly composed networks keep the equality: masked computes what pruned does."""

import copy

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_pruning import difference, masked, randomise
from torch import Tensor, nn
from torch.nn import functional as F

from rni_pl.pruning import prune
from rni_pl.pruning.cost import CostModel, parameter_count
from rni_pl.pruning.graph import trace

ACTIVATIONS = [nn.ReLU, nn.SiLU, nn.Hardswish, nn.Tanh, nn.LeakyReLU, nn.GELU]


def conv_bn(inputs: int, outputs: int, kernel: int = 3, **options: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, **options),
        nn.BatchNorm2d(outputs),
    )


class Plain(nn.Module):
    """Convolution, norm, activation; perhaps strided."""

    def __init__(self, inputs: int, outputs: int, act: type[nn.Module], stride: int) -> None:
        super().__init__()
        self.body, self.act = conv_bn(inputs, outputs, stride=stride), act()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.body(x))


class Residual(nn.Module):
    """Two convolutions beside an identity or, with another width, zero-padded channels."""

    def __init__(self, inputs: int, outputs: int, act: type[nn.Module], stride: int) -> None:
        super().__init__()
        self.a, self.b = conv_bn(inputs, inputs + 4), conv_bn(inputs + 4, outputs, stride=stride)
        self.act, self.stride = act(), stride
        self.front, self.back = (outputs - inputs) // 2, (outputs - inputs + 1) // 2

    def forward(self, x: Tensor) -> Tensor:
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], [0] * 4 + [self.front, self.back])
        return self.act(shortcut + self.b(self.act(self.a(x))))


class Inverted(nn.Module):
    """Expansion, depthwise convolution (perhaps without a norm of its own), gate, projection."""

    def __init__(self, inputs: int, outputs: int, act: type[nn.Module], stride: int) -> None:
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

    def __init__(self, inputs: int, outputs: int, act: type[nn.Module], stride: int) -> None:
        super().__init__()
        self.a = conv_bn(inputs, outputs // 2, 1, stride=stride)
        self.b = conv_bn(inputs, outputs - outputs // 2, stride=1)
        self.pool = nn.AvgPool2d(3, stride, 1)
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(torch.cat([self.a(x), self.pool(self.b(x))], 1))


class Dense(nn.Module):
    """Pre-activation layer whose input is passed on beside its output."""

    def __init__(self, inputs: int, outputs: int, act: type[nn.Module], stride: int) -> None:
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

    def __init__(self, inputs: int, outputs: int, act: type[nn.Module], stride: int) -> None:
        super().__init__()
        self.enter = Plain(inputs, outputs, act, stride)
        self.worked = conv_bn(outputs // 2, outputs // 2)
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.enter(x).chunk(2, 1)
        x = torch.cat([one, self.act(self.worked(two))], 1)
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class Grouped(nn.Module):
    """A bottleneck with a grouped convolution."""

    def __init__(self, inputs: int, outputs: int, act: type[nn.Module], stride: int) -> None:
        super().__init__()
        self.a, self.b = conv_bn(inputs, 16, 1), conv_bn(16, 16, groups=4, stride=stride)
        self.c, self.act = conv_bn(16, outputs, 1), act()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.c(self.act(self.b(self.act(self.a(x))))))


class Net(nn.Module):
    """Blocks in a row, and a classifier behind a pool or a flattened map."""

    def __init__(self, blocks: list[nn.Module], width: int, flatten: bool) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveMaxPool2d(2 if flatten else 1)
        self.head = nn.Linear(width * (4 if flatten else 1), 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.flatten(self.pool(self.blocks(x)), 1))


BLOCKS = [Plain, Residual, Inverted, Branches, Dense, Shuffled, Grouped]


@st.composite
def networks(draw: st.DrawFn) -> nn.Module:
    torch.manual_seed(draw(st.integers(0, 2**16)))
    width, blocks = 8, [Plain(3, 8, nn.ReLU, 1)]
    for _ in range(draw(st.integers(1, 5))):
        outputs = width + 2 * draw(st.integers(0, 4))
        act = draw(st.sampled_from(ACTIVATIONS))
        kind = draw(st.sampled_from(BLOCKS))
        blocks.append(kind(width, outputs, act, draw(st.sampled_from([1, 1, 2]))))
        width = outputs
    return randomise(Net(blocks, width, draw(st.booleans()))).double().eval()


@given(
    model=networks(),
    ratio=st.sampled_from([0.2, 0.5, 0.7]),
    scope=st.sampled_from(["global", "local"]),
    coupled=st.booleans(),
    round_to=st.sampled_from([1, 4]),
    target=st.sampled_from(["channels", "params", "macs"]),
)
@settings(
    max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
def test_masked_equals_pruned(model, ratio, scope, coupled, round_to, target) -> None:
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    options = {"coupled": coupled, "round_to": round_to, "target": target, "min_channels": 1}
    pruned, report = prune(model, x, ratio, scope, **options)
    with torch.no_grad():
        assert difference(pruned(x), masked(model, report)(x)) < 1e-6
        assert pruned.train()(x).shape == (2, 5)


@given(model=networks())
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_costs_are_counted(model) -> None:
    graph = trace(model, torch.zeros(1, 3, 16, 16, dtype=torch.float64))
    keep = torch.ones(graph.size, dtype=torch.bool)
    assert CostModel(model, graph).params(keep) == parameter_count(model)


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

"""Networks composed of layers of all kinds and ranks keep the equality, as those of images do."""

import copy
import os
from collections.abc import Callable

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layer_networks import CONV, NORM, POOL, TRANSPOSED
from masking import difference, masked
from torch import Tensor, nn

from rni_pl.cost import macs_on, parameter_count
from rni_pl.norm import scaled_norms
from rni_pl.pruning import prune, resize, structure_of

ACTIVATIONS = [nn.ReLU, nn.SiLU, nn.Hardswish, nn.Tanh, nn.GELU, nn.PReLU, nn.ELU, nn.Mish]
EXAMPLES = int(os.environ.get("RNI_PL_EXAMPLES", "60"))  # more of them: once, after large changes


def made(inputs: int, outputs: int, kind: type[nn.Module], **options: int) -> nn.Sequential:
    """A layer with weights, and its norm layer; no bias is left where a channel is gone."""
    layer = kind(inputs, outputs, bias=False, **options)
    return nn.Sequential(layer, NORM[layer.weight.ndim - 2](outputs))


class Plain(nn.Module):
    """A convolution, perhaps a transposed or a grouped one."""

    def __init__(self, rank: int, inputs: int, outputs: int, draw: Callable) -> None:
        super().__init__()
        kind = draw([CONV[rank], TRANSPOSED[rank]])
        groups = draw([1, 1, 2]) if outputs % 2 == 0 == inputs % 2 else 1
        self.body = made(inputs, outputs, kind, kernel_size=3, padding=1, groups=groups)
        self.act = draw(ACTIVATIONS)()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.body(x))


class Separable(nn.Module):
    """Depthwise, perhaps with a multiplier and transposed, then pointwise."""

    def __init__(self, rank: int, inputs: int, outputs: int, draw: Callable) -> None:
        super().__init__()
        kind, times = draw([CONV[rank], TRANSPOSED[rank]]), draw([1, 2])
        self.deep = made(inputs, inputs * times, kind, kernel_size=3, padding=1, groups=inputs)
        if draw([False, True]):
            self.deep = self.deep[:1]
        self.point = made(inputs * times, outputs, CONV[rank], kernel_size=1)
        self.act = draw(ACTIVATIONS)()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.point(self.act(self.deep(x))))


class Scaled(nn.Module):
    """A residual branch under a layer scale, einsum or matmul in it."""

    def __init__(self, rank: int, inputs: int, outputs: int, draw: Callable) -> None:
        super().__init__()
        self.enter, self.norm = (
            made(inputs, outputs, CONV[rank], kernel_size=1),
            NORM[rank](outputs),
        )
        self.wide, self.back = (
            nn.Parameter(torch.randn(n) * 0.3) for n in ((outputs, 14), (14, outputs))
        )
        self.inner, self.gain = NORM[rank](14), nn.Parameter(torch.randn(outputs, *[1] * rank))
        self.act, self.by_name = draw(ACTIVATIONS)(), draw([False, True])

    def times(self, x: Tensor, weight: Tensor) -> Tensor:
        if self.by_name:
            return torch.einsum("ncl,ck->nkl", x.flatten(2), weight).unflatten(2, x.shape[2:])
        return (x.movedim(1, -1) @ weight).movedim(-1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        return (
            x
            + self.norm(self.times(self.act(self.inner(self.times(x, self.wide))), self.back))
            * self.gain
        )


class Written(nn.Module):
    """Views change in place."""

    def __init__(self, rank: int, inputs: int, outputs: int, draw: Callable) -> None:
        super().__init__()
        self.body = made(inputs, outputs, CONV[rank], kernel_size=3, padding=1)
        self.change, self.act = draw(list(CHANGES)), draw(ACTIVATIONS)()

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        CHANGES[self.change](x)
        return self.act(x)


CHANGES: dict[str, Callable[[Tensor], object]] = {
    "a view": lambda x: x.flatten(1).mul_(0.5),
    "some images": lambda x: x[:1].relu_(),
    "an edge": lambda x: x[..., 0].mul_(2.0),
    "an edge by another": lambda x: x[..., 0].copy_(x[..., 1]),
    "an edge of zeros": lambda x: x[..., -1].zero_(),
    "half of the channels": lambda x: x[:, : x.size(1) // 2].mul_(-1.0),
}  # fmt: skip


class Branches(nn.Module):
    """Stacked and summed, concatenated, or a choice by the values of the images."""

    def __init__(self, rank: int, inputs: int, outputs: int, draw: Callable) -> None:
        super().__init__()
        self.one, self.two = (
            made(inputs, outputs, CONV[rank], kernel_size=k, padding=k // 2) for k in (1, 3)
        )
        self.join, self.act = draw(["stack", "cat", "choice", "max"]), draw(ACTIVATIONS)()
        if self.join == "cat":
            self.last = made(2 * outputs, outputs, CONV[rank], kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.one(x), self.two(x)
        if self.join == "cat":
            return self.act(self.last(torch.cat([one, two], 1)))
        if self.join == "stack":
            return self.act(torch.stack([one, two], 1).sum(1))
        if self.join == "max":
            return torch.maximum(self.act(one), self.act(two))
        return self.act(one) if x.sum() > 0 else self.act(two)


class Normed(nn.Module):
    """Group or instance norms, PReLU of each channel."""

    def __init__(self, rank: int, inputs: int, outputs: int, draw: Callable) -> None:
        super().__init__()
        self.body = made(inputs, outputs, CONV[rank], kernel_size=3, padding=1)
        kinds = [
            nn.GroupNorm(2, outputs, affine=False),
            nn.GroupNorm(outputs, outputs),
            nn.PReLU(outputs),
        ]
        self.more, self.act = draw(kinds), draw(ACTIVATIONS)()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.more(self.body(x)))


BLOCKS = [Plain, Separable, Scaled, Written, Branches, Normed]


class Net(nn.Module):
    """Blocks in a row, and a head that pools, flattens, or reads a sequence."""

    def __init__(self, rank: int, blocks: list[nn.Module], width: int, head: str) -> None:
        super().__init__()
        self.blocks, self.head = nn.Sequential(*blocks), head
        if head in ("LSTM", "GRU"):
            self.rnn = getattr(nn, head)(
                width, 6, num_layers=2, bidirectional=True, batch_first=True
            )
        self.pool = POOL[rank](2)
        self.out = nn.Linear({"flat": width * 2**rank, "mean": width}.get(head, 12), 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(x)
        if self.head == "mean":
            return self.out(x.flatten(2).mean(2))
        if self.head == "flat":
            return self.out(self.pool(x).flatten(1))
        return self.out(self.rnn(x.flatten(2).transpose(1, 2))[0].mean(1))


@st.composite
def networks(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(draw(st.integers(0, 2**16)))
    rank, width = draw(st.sampled_from([1, 2, 3])), 12

    def pick(values: list) -> object:
        return draw(st.sampled_from(values))

    blocks: list[nn.Module] = [made(3, 12, CONV[rank], kernel_size=3, padding=1), nn.ReLU()]
    for _ in range(draw(st.integers(1, 4))):
        outputs = draw(st.sampled_from([8, 10, 12, 16]))
        blocks.append(pick(BLOCKS)(rank, width, outputs, pick))  # type: ignore[operator]
        width = outputs
    model = Net(rank, blocks, width, draw(st.sampled_from(["mean", "flat", "LSTM", "GRU"])))
    for _, norm in scaled_norms(model):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    sizes = {1: (9,), 2: (6, 5), 3: (4, 3, 5)}[rank]
    return model.double().eval(), torch.randn(2, 3, *sizes, dtype=torch.float64)


@given(
    given_=networks(),
    ratio=st.sampled_from([0.3, 0.5, 0.8]),
    scope=st.sampled_from(["global", "local"]),
    coupled=st.booleans(),
    target=st.sampled_from(["channels", "params", "macs"]),
)
@settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
def test_masked_equals_pruned(given_, ratio, scope, coupled, target) -> None:
    model, x = given_
    with torch.no_grad():
        before = model(x)
        pruned, report = prune(
            model, x, ratio, scope, coupled=coupled, target=target, min_channels=2
        )
        assert difference(pruned(x), masked(model, report)(x)) < 1e-9
        assert torch.equal(model(x), before)
        again = resize(copy.deepcopy(model), structure_of(pruned))
        again.load_state_dict(pruned.state_dict())
        assert torch.equal(again(x), pruned(x))
    assert report.params == (parameter_count(model), parameter_count(pruned))
    assert report.macs == (macs_on(model, (x,), {}), macs_on(pruned, (x,), {}))
    assert pruned.train()(x).shape == (2, 5)

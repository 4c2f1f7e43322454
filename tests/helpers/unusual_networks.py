"""Networks that do unusual things, and what is to be left whole of them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def conv(inputs: int, outputs: int, kernel: int = 3, **options: Any) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def head(width: int) -> nn.Sequential:
    return nn.Sequential(
        conv(width, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    )  # fmt: skip


class Net(nn.Module):
    """A function that calls layers; the first makes 12 channels."""

    def __init__(self, function: Callable, width: int = 12, **layers: nn.Module) -> None:
        super().__init__()
        self.function, self.stem, self.head = function, conv(3, 12), head(width)
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


class Same(nn.Conv2d):
    """Pads by itself: all that it does, it does to each channel."""

    def forward(self, input: Tensor) -> Tensor:
        padded = F.pad(input, (0, 2, 0, 2))
        return F.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Standardised(Same):
    """Standardises its weight over the inputs: without some of them it is another one."""

    def forward(self, input: Tensor) -> Tensor:
        centred = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(input, centred, self.bias)


class Flagged(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 12), head(12)

    def forward(self, x: Tensor, features: bool = False, gate: Tensor | None = None) -> Tensor:
        x = self.a(x)
        if gate is not None:
            x = x * gate
        return x if features else self.b(x)


class Caching(nn.Module):
    """Notes on itself what it has computed, as attention layers do with their biases."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 12), head(12)
        self.cache: dict[str, Any] = {}

    def forward(self, x: Tensor) -> Tensor:
        self.cache["last"] = self.a(x)
        return self.b(self.cache["last"])


def shared_norm(net: Net, x: Tensor) -> Tensor:
    x = net.stem(x)
    return net.head(net.norm(net.one(x)).relu() * 0.5 + net.norm(net.two(x)).relu())


def shared_conv(net: Net, x: Tensor) -> Tensor:
    x = net.stem(x)
    return net.head(net.norm2(net.same(net.norm1(net.same(x)).relu())).relu())


def attention(net: Net, x: Tensor) -> Tensor:
    x = net.stem(x)
    pooled = F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, 1)
    gate = sum(net.up(F.relu(net.down(each))) for each in pooled)
    return net.head(x * torch.sigmoid(gate))


def halves(net: Net, x: Tensor) -> Tensor:
    x = net.stem(x)
    half = x.size(1) // 2
    return net.head(torch.cat([net.part(x[:, :half]), x[:, half:]], 1))


def written_shuffle(net: Net, x: Tensor) -> Tensor:
    n, c, h, w = (x := net.stem(x)).shape
    return net.head(x.view(n, 3, c // 3, h, w).transpose(1, 2).reshape(n, c, h, w))


def unfolded(net: Net, x: Tensor) -> Tensor:
    n, c, h, w = (x := net.stem(x)).shape
    x = x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4)
    return net.head(x.reshape(n, c * 4, h // 2, w // 2))


def by_size(net: Net, x: Tensor) -> Tensor:
    assert x.dim() == 4
    assert len(x.shape) == 4
    if x.shape[-1] > 8:
        x = F.avg_pool2d(x, 2)
    return net.head(net.stem(x.view(*x.shape)))


def own_conv(layer: nn.Conv2d) -> Net:
    norm = nn.BatchNorm2d(10)
    return Net(lambda s, x: s.head(s.norm(s.own(s.stem(x))).relu()), 10, own=layer, norm=norm)


def tied_weights() -> Net:
    net = Net(lambda s, x: s.head(s.two(s.one(s.stem(x)))), one=conv(12, 12), two=conv(12, 12))
    net.two[0].weight = net.one[0].weight
    return net


def hooked() -> Net:
    net = Net(lambda s, x: s.head(s.stem(x)))
    net.stem[1].register_forward_hook(lambda module, args, output: output.roll(1, 1))
    return net


def hook_on_nothing() -> Net:
    net = Net(lambda s, x: s.head(s.nothing(s.stem(x))), nothing=nn.Identity())
    net.nothing.register_forward_hook(lambda module, args, output: output.roll(1, 1))
    return net


def with_norm(norm: nn.Module) -> Net:
    return Net(lambda s, x: s.head(s.norm(s.stem(x))), norm=norm)


# Networks of which all is pruned but what residual additions tie.
WHOLLY_PRUNED = {
    "shared norm": lambda: Net(
        shared_norm, one=nn.Conv2d(12, 12, 1), two=nn.Conv2d(12, 12, 1), norm=nn.BatchNorm2d(12)
    ),
    "shared convolution": lambda: Net(
        shared_conv, same=nn.Conv2d(12, 12, 3), norm1=nn.BatchNorm2d(12), norm2=nn.BatchNorm2d(12)
    ),
    "norm before concatenation": lambda: Net(
        lambda s, x: s.head(F.relu(torch.cat([s.stem[:2](x), s.other[:2](x)], 1))), 22,
        other=conv(3, 10),
    ),
    "depthwise multiplier": lambda: Net(
        lambda s, x: s.head(s.deep(s.stem(x))), 24, deep=conv(12, 24, groups=12)
    ),
    "channel attention": lambda: Net(
        attention, down=nn.Conv2d(12, 4, 1), up=nn.Conv2d(4, 12, 1)
    ),
    "channel shuffle": lambda: Net(
        lambda s, x: s.head(s.grouped(s.shuffle(s.stem(x)))), shuffle=nn.ChannelShuffle(3),
        grouped=conv(12, 12, groups=3),
    ),
    "functional shuffle": lambda: Net(lambda s, x: s.head(F.channel_shuffle(s.stem(x), 3))),
    "written shuffle": lambda: Net(written_shuffle),
    "space to depth": lambda: Net(unfolded, 48),
    "concatenated with itself": lambda: Net(
        lambda s, x: s.head(torch.cat([y := s.stem(x), y, -y], 1)), 36
    ),
    "indices of a pool": lambda: Net(
        lambda s, x: s.head(F.max_pool2d(s.stem(x), 2, return_indices=True)[0])
    ),
    "two norms": lambda: Net(lambda s, x: s.head(s.norm(s.stem(x))), norm=nn.BatchNorm2d(12)),
    "norm over a concatenation": lambda: Net(
        lambda s, x: s.head(s.norm(torch.cat([y := s.stem(x), s.grow(y)], 1)).relu()), 21,
        grow=nn.Conv2d(12, 9, 3, padding=1), norm=nn.BatchNorm2d(21),
    ),
    "sum of a list": lambda: Net(
        lambda s, x: s.head(sum([s.stem(x), s.other(x)])), other=conv(3, 12)
    ),
    "maxout": lambda: Net(lambda s, x: s.head(torch.max(*s.stem(x).chunk(2, 1))), 6),
    "decisions by size": lambda: Net(by_size),
    "optional arguments": Flagged,
    "notes on itself": Caching,
    "convolution of its own": lambda: own_conv(Same(12, 10, 3)),
    "linear as 1x1": lambda: Net(
        lambda s, x: s.head(s.norm(s.mix(s.stem(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2))), 10,
        mix=nn.Linear(12, 10), norm=nn.BatchNorm2d(10),
    ),
    "in place": lambda: Net(
        lambda s, x: s.head(F.relu_(s.norm(s.mix(s.stem(x))).mul_(0.5))),
        mix=nn.Conv2d(12, 12, 1), norm=nn.BatchNorm2d(12),
    ),
    "swish by hand": lambda: Net(lambda s, x: s.head((y := s.stem[:2](x)) * F.relu6(y + 3) / 6)),
    "BatchNorm1d behind it": lambda: Net(
        lambda s, x: s.head(y := s.stem(x)) + s.out(s.norm(y.mean((2, 3)))),
        norm=nn.BatchNorm1d(12), out=nn.Linear(12, 5),
    ),
    "GroupNorm": lambda: with_norm(nn.GroupNorm(3, 12)),
    "stacked branches": lambda: Net(
        lambda s, x: s.head(torch.stack([s.stem(x), s.other(x)]).mean(0)), other=conv(3, 12)
    ),
    "padding of channels": lambda: Net(
        lambda s, x: s.head(s.pad(s.stem(x).flatten(2)).unflatten(2, (16, 16))), 16,
        pad=nn.ConstantPad2d((0, 0, 2, 2), 0.0),
    ),
    "shared weights": tied_weights,
    "forward hook": hooked,
    "hook on Identity": hook_on_nothing,
}  # fmt: skip


def added_in_place(net: Net, x: Tensor) -> Tensor:
    x = net.stem(x)
    y = net.norm(net.mix(x))
    y.add_(net.bare(x))
    return net.head(y)


def transposed_in_place(net: Net, x: Tensor) -> Tensor:
    rows = F.adaptive_avg_pool2d(net.other(x), 12)
    rows.transpose_(1, 2)
    return net.head(net.stem(x)) + net.over_rows(rows)


# Networks with a layer that stays whole, and a word of the reason.
LEFT_WHOLE = {
    "BatchNorm without scales": (
        lambda: with_norm(nn.BatchNorm2d(12, affine=False)), "stem.1", "reaches head.0.0",
    ),
    "split at numbers": (
        lambda: Net(lambda s, x: s.head(torch.cat(s.stem(x).split([4, 8], 1), 1))), "stem.1",
        "split",
    ),
    "width in a view": (
        lambda: Net(lambda s, x: s.head(s.stem(x).view(-1, 12, 256).view(-1, 12, 16, 16))),
        "stem.1", "view",
    ),
    "width in a decision": (
        lambda: Net(lambda s, x: s.head(y if (y := s.stem(x)).size(1) == 12 else -y)), "stem.1",
        "head.0.0",
    ),
    "a constant is added": (lambda: Net(lambda s, x: s.head(s.stem(x) + 1)), "stem.1", "head.0.0"),
    "padded with ones": (
        lambda: Net(lambda s, x: s.head(F.pad(s.stem(x), (1, 1, 1, 1), value=1.0))), "stem.1",
        "head.0.0",
    ),
    "added in place": (
        lambda: Net(added_in_place, mix=nn.Conv2d(12, 12, 1), norm=nn.BatchNorm2d(12),
                    bare=nn.Conv2d(12, 12, 1)),
        "norm", "head.0.0",
    ),
    "transposed in place": (
        lambda: Net(transposed_in_place, other=conv(3, 12), over_rows=head(12)), "other.1",
        "feeds over_rows.0.0",
    ),
    "addition at numbers": (
        lambda: Net(lambda s, x: s.head(s.stem(x)[:, 3:9] + s.other(x)), 6, other=conv(3, 6)),
        "stem.1", "slice",
    ),
    "weight standardisation": (
        lambda: own_conv(Standardised(12, 10, 3)), "stem.1", "feeds own"
    ),
    "parametrised": (
        lambda: own_conv(nn.utils.parametrizations.weight_norm(nn.Conv2d(12, 10, 3))), "stem.1",
        "fixed channels in own",
    ),
    "attention over channels": (
        lambda: Net(lambda s, x: s.head((y := s.stem(x)) * y.mean((2, 3), True).softmax(1))),
        "stem.1", "softmax",
    ),
    "mean over channels": (
        lambda: Net(lambda s, x: s.head((y := s.stem(x)) * torch.sigmoid(y.mean(1, True)))),
        "stem.1", "mean",
    ),
}  # fmt: skip


def through(between: Callable[[Tensor], Tensor]) -> Net:
    """Something happens between the stem and the head."""
    return Net(lambda net, x: net.head(between(net.stem(x))))

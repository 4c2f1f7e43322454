"""Networks with each kind of layer there is, and what is to be left whole of them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from unusual_networks import Net, conv, head

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
POOL = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}
INSTANCE = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


def block(rank: int, inputs: int, outputs: int) -> nn.Sequential:
    layers = CONV[rank](inputs, outputs, 3, padding=1), NORM[rank](outputs), nn.ReLU()
    return nn.Sequential(*layers)


def around(rank: int, between: nn.Module, width: int = 12, norm: bool = True) -> nn.Sequential:
    """A block, something of `width` channels with a norm layer perhaps, a block, a classifier."""
    return nn.Sequential(
        block(rank, 3, 12), between, NORM[rank](width) if norm else nn.Identity(),
        block(rank, width, 8), POOL[rank](1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip


def image(rank: int) -> Tensor:
    return torch.randn(2, 3, *[6] * rank)


def of_each_rank() -> dict[str, Callable[[], nn.Module]]:
    """Convolutions, transposed ones, and norms, in 1, 2 and 3 dimensions."""
    found: dict[str, Callable[[], nn.Module]] = {}
    convolutions: dict[str, tuple[int, dict[str, Any]]] = {
        "plain": (12, {}), "grouped": (12, {"groups": 4}), "wide groups": (24, {"groups": 2}),
        "depthwise": (12, {"groups": 12}), "depthwise, twice": (24, {"groups": 12}),
        "without bias": (16, {"bias": False, "stride": 2}),
    }  # fmt: skip
    for rank in (1, 2, 3):
        for name, (width, options) in convolutions.items():
            for kind in (CONV[rank], TRANSPOSED[rank]):
                layer = partial(kind, 12, width, 3, padding=1, **options)
                found[f"{kind.__name__} {name}"] = lambda r=rank, layer=layer, w=width: around(
                    r, layer(), w
                )
        found[f"padded around, {rank}"] = lambda r=rank: around(
            r, CONV[r](12, 12, 3, padding=1, padding_mode="circular")
        )
        found[f"InstanceNorm{rank}d"] = lambda r=rank: around(
            r, INSTANCE[r](12, affine=True, track_running_stats=True), norm=False
        )
        found[f"GroupNorm {rank}"] = lambda r=rank: around(r, nn.GroupNorm(3, 12), norm=False)
        found[f"PReLU {rank}"] = lambda r=rank: around(r, nn.PReLU(12), norm=False)
    return found


class Scaled(nn.Module):
    """Multiplied by a parameter, or that added."""

    def __init__(self, *shape: int, times: bool) -> None:
        super().__init__()
        self.gain, self.times = nn.Parameter(torch.randn(shape)), times

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain if self.times else x + self.gain


class Contracted(nn.Module):
    """A bare parameter as classifier."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], *shape: int) -> None:
        super().__init__()
        self.function, self.weight = function, nn.Parameter(torch.randn(shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight)


class Recurrent(nn.Module):
    """Channels of a 1-D network as the features of a sequence."""

    def __init__(self, kind: Callable[..., nn.Module], **options: Any) -> None:
        super().__init__()
        self.stem, self.rnn = block(1, 3, 12), kind(12, 7, **options)
        width = options.get("proj_size", 7) * (2 if options.get("bidirectional") else 1)
        self.out = nn.Linear(width, 5)
        self.first = bool(options.get("batch_first"))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        states = self.rnn(x.permute(0, 2, 1) if self.first else x.permute(2, 0, 1))[0]
        return self.out(states.mean(1 if self.first else 0))


class Words(nn.Module):
    """An embedding whose channels a norm layer scales."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.norm, self.next = nn.Embedding(20, 12), nn.BatchNorm1d(12), block(1, 12, 8)
        self.out = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.words((x[:, 0].abs() * 5).long().clamp(max=19)).transpose(1, 2)
        return self.out(self.next(F.relu(self.norm(x))).mean(2))


def first(layer: nn.Module) -> nn.Sequential:
    """A layer that makes 10 channels of the image, with a norm behind it."""
    return nn.Sequential(layer, nn.BatchNorm2d(10), nn.ReLU(), head(10))


def written(change: Callable[[Tensor], Any]) -> Net:
    """A part of the channels' map changes in place."""

    def forward(net: Net, x: Tensor) -> Tensor:
        x = net.stem[:2](x)
        change(x)
        return net.head(x.relu())

    return Net(forward)


def attended(net: Net, x: Tensor) -> Tensor:
    y = net.stem(x).flatten(2).transpose(1, 2)
    z = F.scaled_dot_product_attention(*net.qk(x.flatten(2).transpose(1, 2)).chunk(2, -1), y)
    return net.out(z.mean(1)) + net.head(net.other(x))


def unpooled(net: Net, x: Tensor) -> Tensor:
    pooled, places = F.max_pool2d(net.stem(x), 2, return_indices=True)
    return net.head(net.unpool(F.relu(pooled), places))


def best(net: Net, x: Tensor) -> Tensor:
    """Picks positions by what it makes of them."""
    x = net.stem(x)
    scores = net.score(x).flatten(1)
    places = scores.topk(4, 1).indices[:, None].expand(-1, x.size(1), -1)
    return net.out(x.flatten(2).gather(2, places).mean(2)) + net.head(x)


def masked_rows(net: Net, x: Tensor) -> Tensor:
    x = net.stem(x)
    rows = x.permute(0, 2, 3, 1)[(y := net.score(x)[:, 0]) > y.median()]
    return net.out(rows.mean(0, keepdim=True)) + net.head(x)


weight_norm, spectral_norm = parametrizations.weight_norm, parametrizations.spectral_norm
bare_norm = partial(nn.GroupNorm, 2, 12, affine=False)
synchronised = nn.SyncBatchNorm.convert_sync_batchnorm

# Layer or parameter -> the norm layer whose channels it has along a dimension, and which one: it is
# at 0 for removed ones, too.
Follows = dict[str, tuple[str, int]]
FOLLOWS: dict[str, Follows] = {
    **{f"InstanceNorm{r}d": {"1.bias": ("0.1", 0), "1.weight": ("0.1", 0)} for r in (1, 2, 3)},
    **{f"GroupNorm {r}": {"1.bias": ("0.1", 0)} for r in (1, 2, 3)},
    "learned positions": {"own.gain": ("stem.1", 1)},
    "offset of each channel": {"own.gain": ("stem.1", 0)},
}

# Of these, some channels of every norm layer can go.
PRUNED: dict[str, Callable[[], nn.Module]] = {
    **of_each_rank(),
    "MLP": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(18, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 8),
        nn.BatchNorm1d(8), nn.SiLU(), nn.Linear(8, 5),
    ),
    **{
        f"{kind.__name__} {options}": lambda k=kind, o=options: Recurrent(k, **o)
        for kind in (nn.LSTM, nn.GRU, nn.RNN)
        for options in (
            {"batch_first": True}, {"num_layers": 2, "bidirectional": True},
            {"bias": False, "batch_first": True},
        )
    },
    "LSTM with a projection": lambda: Recurrent(nn.LSTM, proj_size=4, batch_first=True),
    "Embedding": Words,
    "SyncBatchNorm": lambda: synchronised(around(2, nn.Conv2d(12, 12, 1))),
    "layer scale": lambda: Net(
        lambda s, x: s.head(s.own(s.stem(x))), own=Scaled(12, 1, 1, times=True)
    ),
    "learned positions": lambda: Net(
        lambda s, x: s.head(s.own(s.stem(x))), own=Scaled(1, 12, 6, 6, times=False)
    ),
    "offset of each channel": lambda: Net(
        lambda s, x: s.head(s.own(s.stem[:2](x)).relu()), own=Scaled(12, 1, 1, times=False)
    ),
    "einsum": lambda: Net(
        lambda s, x: s.head(y := s.stem(x)) + s.own(y),
        own=Contracted(lambda x, w: torch.einsum("nchw,kc->nk", x, w), 5, 12),
    ),
    "einsum over positions": lambda: Net(
        lambda s, x: s.head(s.own(s.stem(x))),
        own=Contracted(lambda x, w: torch.einsum("nchw,hg->ncgw", x, w), 6, 6),
    ),
    "matmul": lambda: Net(
        lambda s, x: s.head(y := s.stem(x)) + s.own(y.mean((2, 3))),
        own=Contracted(torch.matmul, 12, 5),
    ),
    "matmul with a norm behind": lambda: Net(
        lambda s, x: s.head(s.norm(s.own(s.stem(x).movedim(1, -1)).movedim(-1, 1)).relu()), 10,
        own=Contracted(torch.matmul, 12, 10), norm=nn.BatchNorm2d(10),
    ),
    "weight_norm": lambda: first(weight_norm(nn.Conv2d(3, 10, 3))),
    "weight_norm of old": lambda: first(nn.utils.weight_norm(nn.Conv2d(3, 10, 3))),
    "weight_norm along inputs": lambda: Net(
        lambda s, x: s.head(s.own(s.stem(x)).relu()), 10,
        own=weight_norm(nn.Conv2d(12, 10, 3), dim=1),
    ),
    "PixelShuffle": lambda: Net(lambda s, x: s.head(F.pixel_shuffle(s.stem(x), 2)), 3),
    "PixelUnshuffle": lambda: Net(lambda s, x: s.head(F.pixel_unshuffle(s.stem(x), 2)), 48),
    "MaxUnpool": lambda: Net(unpooled, unpool=nn.MaxUnpool2d(2)),
    "GroupNorm without parameters": lambda: around(2, bare_norm(), norm=False),
    "chunk": lambda: Net(lambda s, x: s.head(torch.cat(s.stem(x).chunk(3, 1)[::-1], 1))),
    "gated chunk": lambda: Net(
        lambda s, x: s.head((y := s.stem(x).chunk(2, 1))[0] * torch.sigmoid(y[1])), 6
    ),
    "a view is scaled": lambda: written(lambda x: x.flatten(2).mul_(2)),
    "rows are set to 0": lambda: written(lambda x: x[:, :, ::2].zero_()),
    "rows are those of others": lambda: written(lambda x: x[:, :, 0].copy_(x[:, :, 1])),
    "values of attention": lambda: Net(
        attended, qk=nn.Linear(3, 8), out=nn.Linear(12, 5), other=conv(3, 12)
    ),
}  # fmt: skip


def normed(norm: nn.Module) -> Net:
    """Normalised over channels, and behind that a block of more channels."""
    return Net(
        lambda s, x: s.head(s.wide(s.norm(s.stem(x).movedim(1, -1)).movedim(-1, 1))),
        24,
        norm=norm,
        wide=conv(12, 24),
    )


# The layer that stays, and words of the reason; head.0.1 can go.
LEFT_WHOLE: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "LayerNorm": (lambda: normed(nn.LayerNorm(12)), "stem.1", "feeds norm (layer_net"),
    "RMSNorm": (lambda: normed(nn.RMSNorm(12)), "stem.1", "feeds norm (layer_net"),
    "MultiheadAttention": (
        lambda: Net(
            lambda s, x: s.head(s.other(x)) + s.out(
                s.mix(*[s.stem(x).flatten(2).transpose(1, 2)] * 3)[0].mean(1)),
            mix=nn.MultiheadAttention(12, 3, batch_first=True), out=nn.Linear(12, 5),
            other=conv(3, 12),
        ), "stem.1", "MultiheadAttention",
    ),
    "states of an LSTM": (
        lambda: Net(
            lambda s, x: s.head(s.other(x)) + s.norm(s.rnn(x.flatten(2).transpose(1, 2))[0][:, -1]),
            rnn=nn.LSTM(3, 5, batch_first=True), norm=nn.BatchNorm1d(5), other=conv(3, 12),
        ), "norm", "rnn (layer_net",
    ),
    "spectral_norm": (
        lambda: Net(lambda s, x: s.head(s.norm(s.own(x))), 10,
                    own=spectral_norm(nn.Conv2d(3, 10, 3)),
                    norm=nn.BatchNorm2d(10)),
        "norm", "own (layer_net",
    ),
    "spectral_norm of old": (
        lambda: Net(lambda s, x: s.head(s.norm(s.own(x))), 10, norm=nn.BatchNorm2d(10),
                    own=nn.utils.spectral_norm(nn.Conv2d(3, 10, 3))),
        "norm", "own (layer_net",
    ),
    "weight_norm of what it reads": (
        lambda: Net(lambda s, x: s.head(s.own(s.stem(x))), 10,
                    own=weight_norm(nn.Conv2d(12, 10, 3))),
        "stem.1", "own (layer_net",
    ),
    "half by number": (lambda: written(lambda x: x[:, :6].add_(x[:, 6:])), "stem.1", "(layer_net"),
    "rows set to 1": (lambda: written(lambda x: x[:, :, ::2].fill_(1.0)), "stem.1", "(layer_net"),
    "split at unequal numbers": (
        lambda: Net(lambda s, x: s.head(s.stem(x).split([8, 4], 1)[0]), 8), "stem.1", "split",
    ),
    "sort": (lambda: Net(lambda s, x: s.head(s.stem(x).sort(1)[0])), "stem.1", "sort (layer_net"),
    "positions picked by value": (
        lambda: Net(best, score=nn.Conv2d(12, 1, 1), out=nn.Linear(12, 5)), "stem.1", "(layer_net",
    ),
    "positions masked by value": (
        lambda: Net(masked_rows, score=nn.Conv2d(12, 1, 1), out=nn.Linear(12, 5)), "stem.1",
        "index (layer_net",
    ),
    "InstanceNorm with statistics of its own": (
        lambda: Net(lambda s, x: s.head(s.norm(s.stem(x))),
                    norm=nn.InstanceNorm2d(12, track_running_stats=True)),
        "stem.1", "(layer_net",
    ),
    "GroupNorm whose groups stand in the code": (
        lambda: Net(lambda s, x: s.head(F.group_norm(s.stem(x), 2))), "stem.1", "group_norm",
    ),
}  # fmt: skip

"""Networks in which channels matter where it is easily overlooked, and what stays whole of them."""

import types
from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F
from unusual_networks import Net, conv, head


class ShiftedScale(nn.BatchNorm2d):
    """Scales by ``1 + weight``: a weight of 0 says nothing."""

    def forward(self, input: Tensor) -> Tensor:
        scale = 1 + self.weight
        stats = (self.running_mean, self.running_var)
        return F.batch_norm(input, *stats, scale, self.bias, self.training)


class Modal(nn.Module):
    """A second head in training, and something else before the first one in evaluation."""

    def __init__(self, evaluate: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.evaluate = evaluate
        self.stem, self.head, self.aux = conv(3, 12), head(12), head(12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x) + self.aux(x) if self.training else self.head(self.evaluate(x))


class TwoHeads(nn.Module):
    """One for training, one for evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.train_head, self.eval_head = conv(3, 12), head(12), head(12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.train_head(x) if self.training else self.eval_head(x)


def view_changed(net: Net, x: Tensor) -> Tensor:
    x = net.stem[:2](x)
    rows = x.flatten(2)
    rows += 1
    return net.head(x)


def half_changed(net: Net, x: Tensor) -> Tensor:
    x = net.stem[:2](x)
    x[:, :6].add_(1)
    return net.head(x)


def activation_changed(net: Net, x: Tensor) -> Tensor:
    bare, x = net.bare(x := net.stem(x)), net.norm(net.mix(x))
    y = net.act(x)
    y += bare
    return net.head(x)


def with_own_forward() -> Net:
    net = Net(lambda s, x: s.head(s.mix(s.stem(x))), mix=nn.Conv2d(12, 12, 1))

    def standardised(self: nn.Conv2d, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True))

    net.mix.forward = types.MethodType(standardised, net.mix)
    return net


# Networks with a layer that stays whole, and a word of the reason.
LEFT_WHOLE = {
    "slice for what is not understood": (
        lambda: Net(
            lambda s, x: s.head(y := s.stem(x)) + y[:, 4:9].softmax(1).amax((2, 3))
        ), "stem.1", "slice",
    ),
    "slice for a gate": (
        lambda: Net(lambda s, x: s.head((y := s.stem(x)) * y[:, 6:7])), "stem.1", "slice",
    ),
    "the image is added": (
        lambda: Net(lambda s, x: s.head(F.relu(s.stem[:2](x) + x[:, :1]))), "stem.1", "head.0.0",
    ),
    "the width as a factor": (
        lambda: Net(lambda s, x: s.head((y := s.stem(x)) * y.size(1) ** -0.5)), "stem.1", "mul",
    ),
    "the width as a divisor": (
        lambda: Net(lambda s, x: s.head((y := s.stem(x)) / y.shape[1])), "stem.1", "div",
    ),
    "a view changes in place": (lambda: Net(view_changed), "stem.1", "head.0.0"),
    "an activation changes in place": (
        lambda: Net(activation_changed, mix=nn.Conv2d(12, 12, 1), norm=nn.BatchNorm2d(12),
                    act=nn.Dropout(inplace=True), bare=nn.Conv2d(12, 12, 1)),
        "norm", "head.0.0",
    ),
    "pooling over channels": (
        lambda: Net(lambda s, x: s.head(s.other(x)) + s.out(
            F.max_pool2d(s.stem(x).flatten(2), (2, 1)).mean(2)),
            other=conv(3, 12), out=nn.Linear(6, 5)),
        "stem.1", "max_pool2d",
    ),
    "forward pass set on a layer": (with_own_forward, "stem.1", "feeds mix"),
    "scale of one more": (
        lambda: Net(lambda s, x: s.head(s.norm(s.mix(s.stem(x)))), mix=nn.Conv2d(12, 12, 1),
                    norm=ShiftedScale(12)),
        "norm", "silence",
    ),
    "mean over channels in evaluation": (
        lambda: Modal(lambda x: x - x.mean(1, keepdim=True)), "stem.1", "mean",
    ),
}  # fmt: skip

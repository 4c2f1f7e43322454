"""Importance: what the channels of a layer are ranked by.

``Scale`` ranks norm layers by their scales. All others rank the layers that make channels
(convolutions, linear layers, embeddings), with or without a norm layer behind them, by the rows of
their weights: row c is all that makes channel c. So that layers can be compared, their scores are
divided by their mean, ``I(c) = s(c) / mean(s)``; a dependency group has the mean over its channels.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from rni_pl import norm
from rni_pl.errors import PruningError
from rni_pl.modes import evaluating

# A scalar loss of a network on one batch, whatever that holds.
LossOf = Callable[[nn.Module, Any], Tensor]


class Importance(ABC):
    """Scores the channels of one layer after the other; one of your own is a subclass.

    Attributes:
        of_scales: norm layers are ranked, by what scales a channel; else layers that make channels.
        wanted: batches of training data to be calibrated on; 0: none.
    """

    of_scales: ClassVar[bool] = False
    wanted: int = 0

    @abstractmethod
    def scores(self, name: str, layer: nn.Module) -> Tensor:
        """The scores of a layer's output channels, >= 0, shape (channels,)."""

    def calibrated(self, model: nn.Module, batches: Iterable[Any], loss: LossOf) -> "Importance":
        """Itself, with what it has to know of the training data."""
        return self


class Scale(Importance):
    """The size of the effective scale: ``sigmoid(gamma)`` of SigBN, ``abs(gamma)`` of BatchNorm.

    Source: arXiv 2204.06404, section 3; Liu et al. 2017, arXiv 1708.06519.
    """

    of_scales = True

    def scores(self, name: str, layer: nn.Module) -> Tensor:
        """See `Importance`."""
        return norm.scale(layer).detach().abs()  # type: ignore[arg-type]


class L1(Importance):
    """The sum of a row's absolute weights. Source: Li et al. 2017, arXiv 1608.08710."""

    def scores(self, name: str, layer: nn.Module) -> Tensor:
        """See `Importance`."""
        return rows_of(layer).abs().sum(1)


class L2(Importance):
    """The length of a row. Source: He et al. 2018, arXiv 1808.06866."""

    def scores(self, name: str, layer: nn.Module) -> Tensor:
        """See `Importance`."""
        return rows_of(layer).norm(dim=1)


class FPGM(Importance):
    """The sum of a row's distances to the others of its layer: near the geometric median, rows are
    replaced by others most easily. Source: He et al. 2019, arXiv 1811.00250.
    """

    def scores(self, name: str, layer: nn.Module) -> Tensor:
        """See `Importance`."""
        rows = rows_of(layer)
        return torch.cdist(rows, rows).sum(1)


@dataclass
class Random(Importance):
    """Random numbers, to compare with."""

    seed: int = 0

    def scores(self, name: str, layer: nn.Module) -> Tensor:
        """See `Importance`."""
        own = torch.Generator().manual_seed(self.seed + sum(map(ord, name)))
        return torch.rand(len(rows_of(layer)), generator=own)


@dataclass
class Taylor(Importance):
    """How much the loss changes without a row, to first order: ``abs(sum(row * gradient))``.

    The mean over calibration batches. Source: Molchanov et al. 2019, arXiv 1906.10771, equation 8.

    Args:
        batches: how many of the training data `prune.py` takes.
        gradients: of each parameter for each batch, by name; `calibrated` measures them.
    """

    batches: int = 10
    gradients: list[Mapping[str, Tensor]] = field(default_factory=list, repr=False)

    @property
    def wanted(self) -> int:  # type: ignore[override]
        """See `Importance`."""
        return self.batches

    def calibrated(self, model: nn.Module, batches: Iterable[Any], loss: LossOf) -> "Taylor":
        """With the gradients of a network on some batches.

        Args:
            model: in evaluation mode meanwhile; its own gradients are left as they are.
            batches: whatever `loss` takes.
            loss: a scalar of the network and one batch.
        """
        names, parameters = zip(*model.named_parameters(), strict=True)
        found: list[Mapping[str, Tensor]] = []
        with evaluating(model), torch.enable_grad():
            for batch in batches:
                gradients = torch.autograd.grad(loss(model, batch), parameters, allow_unused=True)
                pairs = zip(names, gradients, strict=True)
                found.append({name: g for name, g in pairs if g is not None})
        return Taylor(self.batches, found)

    def scores(self, name: str, layer: nn.Module) -> Tensor:
        """See `Importance`."""
        if not self.gradients:
            raise PruningError("Taylor has no gradients: see its method calibrated")
        rows, key = rows_of(layer), f"{name}.weight".lstrip(".")
        none = torch.zeros_like(layer.weight)  # type: ignore[arg-type]
        each = [
            (rows * rows_of(layer, gradients.get(key, none))).sum(1).abs()
            for gradients in self.gradients
        ]
        return torch.stack(each).mean(0)


@dataclass
class OfFunction(Importance):
    """Whatever a function of a layer gives, shape (channels,)."""

    function: Callable[[nn.Module], Tensor]

    def scores(self, name: str, layer: nn.Module) -> Tensor:
        """See `Importance`."""
        return self.function(layer)


IMPORTANCES: dict[str, type[Importance]] = {
    "scale": Scale, "l1": L1, "l2": L2, "fpgm": FPGM, "taylor": Taylor, "random": Random,
}  # fmt: skip


def importance_of(given: Any) -> Importance:
    """An importance by its name, itself, or of a function.

    Raises:
        PruningError: it is none of these.
    """
    if isinstance(given, Importance):
        return given
    if isinstance(given, str) and given in IMPORTANCES:
        return IMPORTANCES[given]()
    if callable(given) and not isinstance(given, type):
        return OfFunction(given)
    raise PruningError(
        f"prune.importance={given!r} is unknown; allowed: {', '.join(IMPORTANCES)}, an Importance, "
        "or a function of a layer"
    )


def makes_rows(layer: nn.Module) -> bool:
    """Whether a layer has a weight whose rows make channels."""
    weight = getattr(layer, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim > 1


@torch.no_grad()
def rows_of(layer: nn.Module, weight: Tensor | None = None) -> Tensor:
    """The weights that make each output channel, shape (channels, weights), in float32 or more.

    `weight` stands for the layer's own, such as its gradient.
    """
    own: Any = layer.weight
    weight = own if weight is None else weight
    weight = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
    if isinstance(layer, _ConvTransposeNd):  # all inputs by the outputs of one group
        groups = layer.groups
        by_group = weight.view(groups, -1, *weight.shape[1:]).transpose(1, 2)
        return by_group.reshape(groups * weight.size(1), -1)
    if isinstance(layer, nn.Embedding):
        return weight.t()
    return weight.flatten(1)

"""Sparsity penalties on BatchNorm scales, with their gradients in closed form."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from numbers import Real
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from rni_pl.errors import ConfigError


def rni_penalty(gamma: Tensor, shift: float = 0.0) -> Tensor:
    """Unweighted RNI penalty ``sum(s * (1 - ln s))`` with ``s = sigmoid(gamma + shift)``, a scalar.

    `gamma` may have any shape; `shift` is the paper's b (Suteu & Guo 2022, arXiv 2204.06404).
    """
    # logsigmoid stays finite where s underflows to 0.
    return (torch.sigmoid(gamma + shift) * (1 - F.logsigmoid(gamma + shift))).sum()


def l1_penalty(gamma: Tensor) -> Tensor:
    """Unweighted L1 penalty ``sum(|gamma|)``, a scalar (network slimming, Liu et al., ICCV 2017).

    `gamma` may have any shape.
    """
    return gamma.abs().sum()


@dataclass(frozen=True)
class Regulariser(ABC):
    """A penalty on the scales of every BatchNorm, and what goes with it.

    A subclass states its norm layer (``"bn"`` or ``"sigbn"``), the scope in which its scores are
    comparable (``"global"`` or ``"local"``), the penalty and its gradient. `gamma` is always the
    concatenation of all raw scales that are trained, shape (channels,).
    """

    norm: ClassVar[str] = "bn"
    scope: ClassVar[str] = "global"

    def __post_init__(self) -> None:
        """Raise `ConfigError` where a float is no finite number, or `reg_weight` negative."""
        for field in fields(self):
            if field.type not in (float, "float"):
                continue
            value = getattr(self, field.name)
            is_number = isinstance(value, Real) and not isinstance(value, bool)
            if is_number and math.isfinite(value) and (value >= 0 or field.name != "reg_weight"):
                continue
            allowed = "numbers >= 0" if field.name == "reg_weight" else "finite numbers"
            raise ConfigError(f"method.{field.name}={value!r} is not allowed; allowed: {allowed}")

    @abstractmethod
    def penalty(self, gamma: Tensor) -> Tensor:
        """The weighted penalty that the loss grows by, a scalar."""

    @abstractmethod
    def gradient(self, gamma: Tensor) -> Tensor:
        """Derivative of `penalty` with respect to `gamma`, of the same shape."""


@dataclass(frozen=True)
class RNI(Regulariser):
    """Receding neuron importances: a gradient bump that spares large and receded channels.

    Source: Suteu & Guo 2022, arXiv 2204.06404. `reg_weight` is >= 0; `shift`, any finite number (b
    in the paper), moves the bump to the left.
    """

    reg_weight: float = 1e-4
    shift: float = 0.0

    norm: ClassVar[str] = "sigbn"

    def penalty(self, gamma: Tensor) -> Tensor:
        """``reg_weight * sum(s * (1 - ln s))``."""
        return self.reg_weight * rni_penalty(gamma, self.shift)

    def gradient(self, gamma: Tensor) -> Tensor:
        """``-reg_weight * s * (1 - s) * ln s``."""
        s = torch.sigmoid(gamma + self.shift)
        # sigmoid(-x) instead of 1 - s: exact where s rounds to 1.
        not_s = torch.sigmoid(-(gamma + self.shift))
        return -self.reg_weight * s * not_s * F.logsigmoid(gamma + self.shift)


@dataclass(frozen=True)
class L1(Regulariser):
    """Network slimming: the absolute value of every scale (Liu et al., ICCV 2017).

    `reg_weight` is >= 0.
    """

    reg_weight: float = 1e-5

    def penalty(self, gamma: Tensor) -> Tensor:
        """``reg_weight * sum(|gamma|)``."""
        return self.reg_weight * l1_penalty(gamma)

    def gradient(self, gamma: Tensor) -> Tensor:
        """``reg_weight * sign(gamma)``."""
        return self.reg_weight * gamma.sign()


@dataclass(frozen=True)
class UCS(Regulariser):
    """Uniform channel scaling: no penalty, the same ratio removed in every layer."""

    scope: ClassVar[str] = "local"

    def penalty(self, gamma: Tensor) -> Tensor:
        """Zero."""
        return gamma.new_zeros(())

    def gradient(self, gamma: Tensor) -> Tensor:
        """Zeros."""
        return torch.zeros_like(gamma)


@dataclass(frozen=True)
class Polarization(Regulariser):
    """Polarization: drives each scale to zero or away from the mean, rather than all to zero.

    Source: Zhuang et al., NeurIPS 2020, eq. 1, over all scales of the network together; `t`, any
    finite number, weighs sparsity against polarization. `reg_weight` is >= 0.
    """

    reg_weight: float = 1e-4
    t: float = 1.2

    def penalty(self, gamma: Tensor) -> Tensor:
        """``reg_weight * (t * sum(|gamma|) - sum(|gamma - mean(gamma)|))``."""
        apart = (gamma - gamma.mean()).abs().sum()
        return self.reg_weight * (self.t * l1_penalty(gamma) - apart)

    def gradient(self, gamma: Tensor) -> Tensor:
        """``reg_weight * (t * sign(gamma) - side + mean(side))``, side the sign of gamma - mean."""
        side = (gamma - gamma.mean()).sign()
        return self.reg_weight * (self.t * gamma.sign() - side + side.mean())

"""Penalties on scales: their gradients are autograd's, and their settings numbers."""

import math
import re
from collections.abc import Callable

import pytest
import torch

from rni_pl.errors import ConfigError
from rni_pl.regularisers import L1, RNI, UCS, Polarization, Regulariser

REGULARISERS = [RNI(1e-2, 1.5), L1(1e-2), UCS(), Polarization(1e-2, 1.2)]


@pytest.mark.parametrize("regulariser", REGULARISERS, ids=lambda r: type(r).__name__)
def test_closed_form(regulariser: Regulariser) -> None:
    gamma = torch.linspace(-30, 30, 601, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(regulariser.penalty(gamma) + 0 * gamma.sum(), gamma)
    assert torch.allclose(regulariser.gradient(gamma.detach()), expected, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize(
    ("make", "setting"),
    [
        (lambda: RNI(math.nan), "method.reg_weight=nan"),
        (lambda: L1(-1e-5), "method.reg_weight=-1e-05"),
        (lambda: RNI(1e-4, math.inf), "method.shift=inf"),
        (lambda: Polarization(t="1.2"), "method.t='1.2'"),  # type: ignore[arg-type]
        (lambda: Polarization(t=True), "method.t=True"),
    ],
)
def test_settings_of_a_regulariser_are_finite_numbers(make: Callable, setting: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(setting)):
        make()

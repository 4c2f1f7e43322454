"""What stands for a result while a network's own code runs, and how that code sees it.

Python code that asks with `isinstance` takes a stand-in for a tensor. C++ code must not: it would
read memory that no stand-in has.
"""

import builtins
import functools
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx

FACTORIES = ("empty", "ones", "rand", "randn", "zeros")  # which take sizes one by one as well
A_TENSOR = torch.empty(0)


class StandIn(fx.Proxy):
    """A result whose length is known, and so that of its attributes (``x.shape``)."""

    @property
    def is_tensor(self) -> bool:
        """Whether it stands for a tensor."""
        return isinstance(self._value(), Tensor)

    def _value(self) -> Any:
        return self.tracer.results.get(self.node)  # type: ignore[attr-defined]

    def __len__(self) -> int:
        return len(self.tracer.results[self.node])  # type: ignore[attr-defined]

    def __int__(self) -> int:
        return self.tracer.to_number(self, int)  # type: ignore[attr-defined]

    __index__ = __int__

    def __float__(self) -> float:
        return self.tracer.to_number(self, float)  # type: ignore[attr-defined]

    # fx notes these as new results; what else holds the memory would not be known to change.

    def __iadd__(self, other: Any) -> fx.Proxy:
        return self._change(operator.iadd, other)

    def __isub__(self, other: Any) -> fx.Proxy:
        return self._change(operator.isub, other)

    def __imul__(self, other: Any) -> fx.Proxy:
        return self._change(operator.imul, other)

    def __itruediv__(self, other: Any) -> fx.Proxy:
        return self._change(operator.itruediv, other)

    def _change(self, operation: Callable, other: Any) -> fx.Proxy:
        if not isinstance(self.tracer.results[self.node], Tensor):  # type: ignore[attr-defined]
            return NotImplemented  # numbers do not change in place
        return self.tracer.create_proxy("call_function", operation, (self, other), {})

    def __getattr__(self, name: str) -> "StandInAttribute":
        if name in ("_is_param", "_is_buffer"):  # what nn.Parameter's and nn.Buffer's ask
            raise AttributeError(name)
        return StandInAttribute(self, name)


class StandInAttribute(StandIn, fx.proxy.Attribute):
    """An attribute of a result."""

    def _value(self) -> Any:
        return getattr(self.root._value(), self.attr, None)  # without a note of it in the graph


STAND_INS = (StandIn, StandInAttribute)


@contextmanager
def passing_for_tensors() -> Iterator[None]:
    """Let Python code take stand-ins for tensors, and make tensors of their sizes."""
    originals = {name: getattr(torch, name) for name in FACTORIES}
    is_instance = builtins.isinstance

    def asked(value: Any, kind: Any) -> bool:
        if is_instance(value, kind):
            return True
        return type(value) in STAND_INS and value.is_tensor and is_instance(A_TENSOR, kind)

    builtins.isinstance = asked
    for name, original in originals.items():
        setattr(torch, name, _of_sizes_in_a_tuple(original))
    try:
        yield
    finally:
        builtins.isinstance = is_instance
        for name, original in originals.items():
            setattr(torch, name, original)


def _of_sizes_in_a_tuple(make: Callable) -> Callable:
    """A function that makes a tensor; of stand-ins torch takes only ``zeros((n, 4))``."""

    @functools.wraps(make)
    def made(*args: Any, **kwargs: Any) -> Any:
        one_by_one = any(type(value) in STAND_INS for value in args)
        return make(args, **kwargs) if one_by_one else make(*args, **kwargs)

    return made


def decision(value: Any, before: bool) -> None:
    """Raise where the network's code would now go another way."""
    if bool(value) is not before:
        raise RuntimeError("the network's code would decide otherwise")


def number(value: Any, before: float) -> None:
    """Raise where the network's code would now calculate with another size."""
    if type(before)(value) != before:
        raise RuntimeError("the network's code would calculate with another size")

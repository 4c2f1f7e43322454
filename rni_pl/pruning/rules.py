"""The two rules that most operations come down to, on which all others are built.

`meet` takes an operation in index notation, as `torch.einsum` does: dimensions of one letter meet,
and their channels can only go together. `elementwise` is the case of equal shapes, in which it
matters what the operation makes of a channel that is 0. That is listed nowhere: each is tried on
single numbers.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rni_pl.pruning.ids import Axis, Label, Unclear, collapse, constant_along, gathered
from rni_pl.pruning.ops import Op, rule
from rni_pl.pruning.propagate import Propagation
from rni_pl.pruning.shapes import carried_out

Terms = Sequence[tuple[Tensor | None, Sequence[str]]]
Holder = tuple[Tensor, int, Label | None]  # a tensor, one of its dimensions, its label

# A removed channel of theirs is not taken for a constant that goes with it, as a sigmoid's is.
OFFSETS = {"add", "sub", "rsub", "masked_fill", "where"}
PRODUCTS = {"mul", "div"}
FEW, MANY = 0.7, 1.3  # numbers that stand for what is not 0


def meet(run: Propagation, terms: Terms, out: Sequence[str]) -> Label:
    """The label of a result, from tensors with a letter for each of their dimensions.

    A letter that the result has not is summed over. A capital's channels are mixed, and stay; so
    do those along a dimension with a dot, which no letter names.
    """
    given = [(x, letters, run.label(x)) for x, letters in terms if x is not None]
    (_, letters, label), *others = given
    if not others and label is not None and label.full is not None:
        return _moved(label, label.full, letters, out)
    holders: dict[str, list[Holder]] = {}
    for x, letters, label in given:
        for d, letter in enumerate(letters):
            holders.setdefault(letter, []).append((x, d, label))
    made = Label()
    for letter, found in holders.items():
        if not any(a is not None and (d in a.axes or a.full is not None) for _, d, a in found):
            continue
        if letter == ".":
            _hold_unnamed(run, found)
            continue
        axis = _met(run, found, letter in out)
        if letter.isupper():
            run.hold(axis.ids, "mixes channels")
        if letter in out:
            made.axes[list(out).index(letter)] = axis
    labels = [label for _, _, label in given]
    if labels and all(label is not None and label.name for label in labels):
        made.name = labels[0].name  # type: ignore[union-attr]
    return made


def _hold_unnamed(run: Propagation, holders: list[Holder]) -> None:
    for _, d, label in holders:
        if label is not None and not label.name and d in label.axes:
            run.hold(label.axes[d].ids, "mixes channels with positions")


def _met(run: Propagation, holders: list[Holder], stays: bool) -> Axis:
    """The ids of dimensions of several tensors that are one, where some have any."""
    found = [(x, d, a) for x, d, a in holders if x.size(d) > 1 or (a is not None and d in a.axes)]
    named = [each for each in found if each[2] is not None and each[2].name]
    active = [each for each in found if each[2] is not None and not each[2].name]
    active += [each for each in found if each[2] is None]
    if not active and stays:  # rows of a weight
        (x, d, _), *rest = named
        axis = run.rows(x, d)
        for other, e, _ in rest:
            run.bind(other, e, axis.ids)  # type: ignore[arg-type]
        return axis
    (x, d, label), *others = active or named
    axis = run.along(x, d)
    for other, e, _ in others:
        more = run.along(other, e)
        run.tie(axis.ids, more.ids)  # type: ignore[arg-type]
        axis = Axis.of(torch.where(more.signed > 0, axis.signed.abs(), axis.signed))
    if not stays:
        run.read(axis, label)
    for other, e, _ in named if active else ():
        if stays:
            run.bind(other, e, axis.ids)  # type: ignore[arg-type]
        else:
            run.contract(axis, None, other, e)
    return axis


def _moved(label: Label, full: Tensor, letters: Sequence[str], out: Sequence[str]) -> Label:
    """Ids that vary along several dimensions, along which the operation does nothing."""
    for d, letter in enumerate(letters):
        if letter == "." or letter.isupper() or letter not in out:
            if not constant_along(full, d):
                raise Unclear("mixes channels")
            full = full.narrow(d, 0, 1)
    for d, letter in reversed(list(enumerate(letters))):
        if letter not in out:
            full = full.select(d, 0)
    return label.like({}, full)


@rule(
    "elementwise", "dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout", "to",
    "contiguous", "_to_copy", "clone", "alias", "detach", "relu6", "selu", "celu",
    "rrelu", "nan_to_num", "square", "clip", "lift_fresh",
)  # fmt: skip
def elementwise(run: Propagation, op: Op) -> list[Label]:
    """The label of a result: where several tensors meet, their channels are tied."""
    if op.name == "where" and len(op.tensors) == 1:  # places, whose number is anything
        raise Unclear("picks elements by values")
    given = [(x, a) for x, a in zip(op.tensors, op.inputs, strict=True) if a is not None]
    active = [(x, label) for x, label in given if label and not label.name]
    named = [(x, label) for x, label in given if label.name]
    if len(op.tensors) == 1:
        made = _alone(op, *given[0])
    elif any(label.full is not None for _, label in given):
        made = _mixed(run, op, active + named)
    else:
        made = Label()
        for dim in sorted({d + op.results[0].ndim - x.ndim for x, a in given for d in a.axes}):
            axis = _along(run, op, active, named, dim, made)
            if axis is not None:
                made.axes[dim] = axis
        constants = [label.constant for _, label in active]
        made.constant |= all(constants) if op.name in PRODUCTS and constants else any(constants)
    if not active and named:
        made.name = named[0][1].name
        if any(_silenced(op, x, label) for x, label in named):
            made.silent_at = 0.0
    return [made] * len(op.results)


def _alone(op: Op, x: Tensor, label: Label) -> Label:
    if label.name:
        return Label(label.axes, label.full)
    if not _is_zero(op, [x], []):
        if op.name in OFFSETS:
            return label.loud()
        label = label.same()
        label.constant = True
    return label.same()


def _along(
    run: Propagation,
    op: Op,
    active: list[tuple[Tensor, Label]],
    named: list[tuple[Tensor, Label]],
    dim: int,
    made: Label,
) -> Axis | None:
    """The ids of the result along one of its dimensions, where it is broadcast to."""
    rank, size = op.results[0].ndim, op.results[0].size(dim)
    met: list[tuple[Tensor, Axis]] = []
    held: list[Tensor] = []
    first = None
    for x, label in active + named:
        axis, d = label.axes.get(dim - rank + x.ndim), dim - rank + x.ndim
        if axis is None or x.size(d) < size:
            run.hold(None if axis is None else axis.ids, "spreads it over other channels")
            continue
        held.append(x)
        if first is None:
            first = run.given(axis, size)
        elif label.name:
            run.bind(x, d, first.ids)  # type: ignore[arg-type]
        elif axis is not first:
            run.tie(first.ids, axis.ids, added=op.name not in PRODUCTS)  # type: ignore[arg-type]
        if not label.name:
            met.append((x, axis))
    if first is None:
        return None
    known = {id(x) for x in held}
    for x in op.tensors:
        if id(x) not in known and x.ndim >= rank - dim and x.size(dim - rank) == size > 1:
            run.hold(first.ids, "meets fixed channels there")
    affine = [x for x, _ in named if id(x) in known]
    return _silence(op, met, affine, named, made) if met else first


def _silence(
    op: Op,
    met: list[tuple[Tensor, Axis]],
    affine: list[Tensor],
    named: list[tuple[Tensor, Label]],
    made: Label,
) -> Axis:
    """The ids of a result, loud where it is not 0 once the scales are.

    Affine parameters of the channels are at 0, too; one number that a network has learned for all
    of them makes a constant of 0, as an activation does.
    """
    first = met[0][1]
    if any(_silenced(op, x, label) for x, label in named):
        return Axis(first.ids)
    for x, axis in met if len(met) > 1 else ():
        if axis.loud is False and _is_zero(op, [x], []):
            return Axis(first.ids)
    tensors = [x for x, _ in met]
    together = _is_zero(op, tensors, affine)
    if not together and named and _is_zero(op, tensors, [x for x, _ in named]):
        together = made.constant = True
    if together and all(axis.loud is False for _, axis in met):
        return first
    silent = torch.stack([axis.signed >= 0 for _, axis in met]).all(0) & together
    for x, axis in met if len(met) > 1 else ():
        if _is_zero(op, [x], []):
            silent |= axis.signed >= 0
    return Axis(first.ids, loud=~silent & (first.ids > 0))  # type: ignore[operator]


def _mixed(run: Propagation, op: Op, given: list[tuple[Tensor, Label]]) -> Label:
    """Tensors of which one has ids that vary along several dimensions at once."""
    shape = op.results[0].shape
    if any(label.name for _, label in given):
        raise Unclear("meets a parameter with mixed channels")
    tensors = [x for x in op.tensors if x.numel() > 1 or run.label(x)]
    full = [run.full(run.label(x) or Label(), x.shape) for x in tensors]
    wide = [ids.expand(shape) for ids in full]
    kept = []
    for i, (ids, whole) in enumerate(zip(full, wide, strict=True)):
        if any(_repeats(ids, other) for j, other in enumerate(wide) if j != i):
            run.hold(collapse(ids)[0].flatten(), "spreads it over other channels")
        else:
            kept.append(whole)
    first, *rest = collapse(*kept)
    for other in rest:
        run.tie(first, other, added=op.name not in PRODUCTS)
    silent = torch.stack([ids >= 0 for ids in (first, *rest)]).all(0)
    silent &= _is_zero(op, [x for x, _ in given], [])
    return Label(*gathered(torch.where(silent, first.abs(), -first.abs()).expand(shape)))


def _repeats(small: Tensor, big: Tensor) -> bool:
    """Whether broadcasting repeats `small` over different channels of `big`."""
    offset = big.ndim - small.ndim
    repeated = [d for d in range(big.ndim) if d < offset or small.size(d - offset) < big.size(d)]
    return any(not constant_along(big, d) for d in repeated)


def _silenced(op: Op, x: Tensor, label: Label) -> bool:
    """Whether a scale that ranks channels makes the result 0 where it is silent."""
    return label.silent_at is not None and _is_zero(op, [x], [], label.silent_at)


_TRIED: dict[Any, bool] = {}


def _is_zero(op: Op, silent: list[Tensor], affine: list[Tensor], value: float = 0.0) -> bool:
    """Whether the result is 0 where some tensors have a value, and others that go with them."""
    zero = {id(x) for x in (*silent, *affine)}
    pattern = tuple(id(x) in zero for x in op.tensors)
    kinds = tuple(x.is_floating_point() for x in op.tensors)
    key = (id(op.info.func), pattern, kinds, repr(op.settings), value)
    if key not in _TRIED:
        _TRIED[key] = all(_try(op, pattern, value, number) for number in (FEW, MANY))
    return _TRIED[key]


def _try(op: Op, pattern: tuple[bool, ...], silent: float, number: float) -> bool:
    zeros = iter(pattern)

    def stand_in(x: Tensor) -> Tensor:
        value, dtype = silent if next(zeros) else number, x.dtype
        dtype = torch.double if x.is_floating_point() else dtype
        return torch.full((1,) * x.ndim, value, dtype=dtype, device="cpu")

    try:
        made = carried_out(op, stand_in)
        return bool(((made[0] if isinstance(made, list | tuple) else made) == 0).all())
    except (RuntimeError, TypeError, ValueError):  # it does not work on single numbers
        return False

"""Rules of the operations without weights that move, join, pool and pick elements, or reduce.

Whatever only moves elements is carried out on the ids themselves.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from rni_pl.pruning.ids import Axis, Label, Unclear, collapse, constant_along, gathered, zeros
from rni_pl.pruning.ops import Op, rule, sizes
from rni_pl.pruning.propagate import Propagation
from rni_pl.pruning.rules import elementwise, meet
from rni_pl.pruning.shapes import dims_of, positions_of

SUMS = ("sum", "linalg_vector_norm", "norm", "nansum")  # they do without channels that are 0
DIGITS = "0123456789"


@rule(
    "view", "reshape", "flatten", "unflatten", "permute", "transpose", "movedim", "t", "squeeze",
    "unsqueeze", "expand", "unbind", "narrow", "select", "slice", "flip", "roll", "repeat",
    "repeat_interleave", "unfold", "_unsafe_view", "_reshape_alias", "diagonal", "rot90", "chunk",
    "split", "split_with_sizes", "tensor_split", "unsafe_chunk", "unsafe_split", same=sizes,
)  # fmt: skip
def move(run: Propagation, op: Op) -> list[Label]:
    """The ids move as the elements do."""
    x = op.args[0]
    label = run.label(x) or Label()
    made = [label.like({}) for _ in op.results]
    for ids in _each_axis(run, x, label):
        if op.name in ("view", "_unsafe_view", "_reshape_alias"):  # ids may lie otherwise
            moved = ids.reshape(op.args[1])
        else:
            moved = op.info.func(ids, *op.args[1:], **op.kwargs)
        parts = list(moved) if isinstance(moved, list | tuple) else [moved]
        if len(parts) == 1:
            _tie_lanes(run, x.shape, ids, parts[0])
        elif op.name != "unbind" and len({part.shape for part in parts}) == 1:
            for part in parts[1:]:  # equal parts stay equal when they lose the same places
                one, other = collapse(parts[0], part)
                run.tie(one, other)
        for result, part in zip(made, parts, strict=True):
            _add(result, part)
    return made


def _each_axis(run: Propagation, x: Tensor, label: Label) -> list[Tensor]:
    """Ids in the shape of a tensor, for each of its axes by itself."""
    if not x.numel():
        raise Unclear("is given no elements, so that channels cannot be followed")
    if label.full is not None:
        return [label.full.expand(x.shape)]
    return [run.full(label, x.shape, d) for d in sorted(label.axes)]


def _add(label: Label, ids: Tensor) -> None:
    """Add ids in the tensor's shape to a label."""
    axes, full = gathered(ids)
    if full is not None and label:
        raise Unclear("mixes the channels of a parameter")
    label.axes.update(axes)
    label.full = full if full is not None else label.full


def _tie_lanes(run: Propagation, shape: Sequence[int], before: Tensor, after: Tensor) -> None:
    """Tie the channels of each lane that a view splits in two dimensions, as a shuffle does."""
    for d in range(len(shape) if after.ndim == len(shape) + 1 else 0):
        merged = [*after.shape[:d], after.size(d) * after.size(d + 1), *after.shape[d + 2 :]]
        if merged == list(shape) and not constant_along(before, d):
            (lanes,) = collapse(after)
            run.tie(lanes.narrow(d, 0, 1).expand_as(lanes), lanes)
            return


@rule("cat", "concat", "concatenate", "stack", same=sizes)
def join(run: Propagation, op: Op) -> Label:
    """A concatenation, or a stack."""
    tensors = [x for x in op.args[0] if x.ndim > 1 or x.numel()]
    found, dim = [run.label(x) or Label() for x in tensors], op.get("dim") % op.out.ndim
    whole = [run.full(label, x.shape) for x, label in zip(tensors, found, strict=True)]
    if op.name == "stack":
        joined = torch.stack(collapse(*whole), dim)
    else:
        joined = torch.cat(collapse(*whole, but=dim), dim)
    shape = [*op.out.shape[:dim], joined.size(dim), *op.out.shape[dim + 1 :]]
    made = Label(*gathered(joined.expand(shape)), constant=any(label.constant for label in found))
    made.name = found[0].name if all(label.name for label in found) else ""
    return made


@rule(
    "mean", "sum", "amax", "amin", "prod", "std", "var", "norm", "linalg_vector_norm", "logsumexp",
    "argmax", "argmin", "any", "all", "max", "min", "median", "nansum", "count_nonzero", "var_mean",
    "std_mean", "aminmax",
)  # fmt: skip
def reduction(run: Propagation, op: Op) -> list[Label]:
    """Reduces dimensions: channels along them are read or mixed, those along others stay apart."""
    if len(op.tensors) > 1:  # the larger of two, for one
        return elementwise(run, op)
    x = op.args[0]
    label, (dims, keepdim) = run.label(x) or Label(), dims_of(op, x)
    sums = op.name in SUMS and not label.constant
    if label.full is not None:
        made = label.like(*gathered(_reduced(run, label.full, dims, keepdim, sums)))
    else:
        lead = "c" if sums else "C"
        letters = [lead + DIGITS[d] if d in dims else DIGITS[d] for d in range(x.ndim)]
        out = ["-" if d in dims else c for d, c in enumerate(letters) if keepdim or d not in dims]
        made = meet(run, [(x, letters)], out)
    made.name = label.name
    made.constant = label.constant or op.name == "logsumexp"
    return [made if i == 0 else made.same() for i in range(len(op.results))]


def _reduced(run: Propagation, full: Tensor, dims: list[int], keepdim: bool, sums: bool) -> Tensor:
    """Ids that vary along several dimensions, of which some are reduced: what meets is tied."""
    (few,) = collapse(full)
    if all(few.size(d) == 1 for d in range(few.ndim) if d not in dims):
        if sums:
            run.read(Axis.of(few.flatten()))
        else:
            run.hold(few.flatten(), "mixes channels")
        few = zeros(1).expand([1] * few.ndim)
    for d in dims:
        first = few.narrow(d, 0, 1)
        run.tie(first.expand_as(few), few, added=True)
        few = torch.where((few >= 0).all(d, keepdim=True), first.abs(), -first.abs())
    wide = few.expand([1 if d in dims else size for d, size in enumerate(full.shape)])
    return (
        wide if keepdim else wide[tuple(0 if d in dims else slice(None) for d in range(few.ndim))]
    )


@rule(
    "softmax", "log_softmax", "_softmax", "_log_softmax", "cumsum", "cumprod", "sort", "topk",
    "logcumsumexp", "glu", "kthvalue", "cummax", "cummin", "renorm",
)  # fmt: skip
def along_dimension(run: Propagation, op: Op) -> list[Label]:
    """Works along one dimension, whose channels stay; those along others stay apart."""
    x, dim = op.args[0], op.get("dim") % op.args[0].ndim
    letters = ["C" if d == dim else DIGITS[d] for d in range(x.ndim)]
    made = meet(run, [(x, letters)], letters)
    made.axes.pop(dim, None)
    made.full = None if made.full is None else made.full.expand(op.results[0].shape)
    made.constant = True
    return [made, *(made.same() for _ in op.results[1:])]


@rule(
    *(f"{kind}{n}d" for n in (1, 2, 3) for kind in (
        "max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "upsample_nearest",
        "reflection_pad", "replication_pad", "max_unpool", "_adaptive_avg_pool",
        "fractional_max_pool", "_upsample_nearest_exact",
    )),
    *(f"max_pool{n}d_with_indices" for n in (1, 2, 3)), "mkldnn_max_pool2d", "upsample_linear1d",
    "upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d", "_upsample_bilinear2d_aa",
    "_upsample_bicubic2d_aa", "grid_sampler", "grid_sampler_2d", "grid_sampler_3d",
)  # fmt: skip
def spatial(run: Propagation, op: Op) -> list[Label]:
    """Pooling and resizing work on the last dimensions, within each channel."""
    x, rank = op.args[0], positions_of(op)
    letters = [*DIGITS[: x.ndim - rank], *"." * rank]
    others = op.tensors[1:] if op.name.startswith("max_unpool") else []
    label = run.label(x) or Label()
    made = meet(run, [(y, letters) for y in (x, *others)], letters)
    if made.full is not None:
        made.full = made.full.expand(
            *made.full.shape[: x.ndim - rank], *op.results[0].shape[-rank:]
        )
    made.constant = label.constant
    return [made, *(made.same() for _ in op.results[1:])]


@rule("pad", "constant_pad_nd", same=sizes)
def pad(run: Propagation, op: Op) -> Label:
    """Constants beside the channels are channels too; those that a layer adds can go."""
    x, widths = op.args[:2]
    label, value = run.label(x) or Label(), op.get("value") or 0
    made = label.loud() if value and any(widths) else label.same()
    made.axes = dict(made.axes)
    if label.full is not None and any(widths):
        raise Unclear("mixes channels with positions")
    for i in range(0, len(widths), 2):
        dim, (front, back) = x.ndim - 1 - i // 2, widths[i : i + 2]
        if (front or back) and dim in label.axes:
            if op.get("mode", "constant") != "constant" or (run.layer and min(front, back) < 0):
                raise Unclear("pads channels with others, or crops them")
            ids = run.given(made.axes[dim], x.size(dim)).signed
            made.axes[dim] = Axis.of(_padded(run, ids, front, back, value))
    return made


def _padded(run: Propagation, ids: Tensor, front: int, back: int, value: float) -> Tensor:
    """Ids with those of added channels in front and behind."""
    if not run.layer:
        return torch.nn.functional.pad(ids, (front, back))
    new = run.new(front + back)
    run.note_layer(None, new)
    new = -new if value else new
    return torch.cat([new[:front], ids, new[front:]])


@rule("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle")
def shuffle(run: Propagation, op: Op) -> Label:
    """Channels change places with positions, or with each other, in fixed numbers."""
    x, factor = op.args[:2]
    dim = x.ndim - 3 if op.name.startswith("pixel") else 1
    ids = run.along(x, dim).signed
    if op.name == "pixel_shuffle":
        blocks = ids.view(-1, factor * factor)
        run.tie(blocks[:, :1].expand_as(blocks), blocks)
        ids = torch.where((blocks >= 0).all(1), blocks[:, 0].abs(), -blocks[:, 0].abs())
    elif op.name == "pixel_unshuffle":
        ids = ids.repeat_interleave(factor * factor)
    else:
        lanes = ids.view(factor, -1)
        run.tie(lanes[:1].expand_as(lanes), lanes)
        ids = lanes.t().flatten()
    return Label({dim: Axis.of(ids)}, constant=(run.label(x) or Label()).constant)


@rule("roi_align", "roi_pool")
def pool_regions(run: Propagation, op: Op) -> Label:
    """Pools within each channel, at places that no channels choose."""
    return meet(run, [(op.args[0], ".c.."), (op.args[1], "..")], "nc..")


@rule("index", "index_select", "gather", "take_along_dim", same=sizes)
def pick(run: Propagation, op: Op) -> Label:
    """Picks elements by numbers: known ones are looked up, others must not choose channels."""
    x = op.args[0]
    label = run.label(x) or Label()
    if any(run.label(index) for index in op.tensors[1:]):
        raise Unclear("picks elements by another activation")
    made = label.like({})
    for ids in _each_axis(run, x, label):
        if any(not constant_along(ids, d) for d in _picked_along(op)):
            run.hold(collapse(ids)[0].flatten(), "picks channels by numbers")
        else:
            _add(made, _picked(run, op, ids))
    return made


def _picked_along(op: Op) -> list[int]:
    """The dimensions along which elements are picked."""
    if op.name == "index":
        return [d for d, index in enumerate(op.args[1]) if index is not None]
    dim = op.get("dim")
    return list(range(op.args[0].ndim)) if dim is None else [dim % op.args[0].ndim]


def _picked(run: Propagation, op: Op, ids: Tensor) -> Tensor:
    """The ids that are picked, which do not vary along the dimensions in question."""
    if op.name != "index":
        for d, size in enumerate(op.results[0].shape):
            picked = d in _picked_along(op)
            ids = ids.narrow(d, 0, 1 if picked else min(size, ids.size(d)))
        return ids.expand(op.results[0].shape)
    made = [x for x in op.tensors[1:] if x.is_meta or run.label(x) is not None]
    if any(x.dtype in (torch.bool, torch.uint8) for x in made):
        raise Unclear("picks elements by values")
    return op.info.func(
        ids, [None if i is None else torch.zeros_like(i, device="cpu") if i.is_meta else i.cpu()
              for i in op.args[1]]
    )  # fmt: skip


@rule("copy", "fill", "zero")
def overwrite(run: Propagation, op: Op) -> Label:
    """A tensor takes the content of another, or of a number."""
    target, *source = op.tensors
    if not source:  # a number, which is 0 for every channel or for none
        label = run.label(target) or Label()
        value = op.args[1] if op.name == "fill" else 0
        return label.same() if value == 0 else label.loud()
    label = run.label(source[0]) or Label()
    made = Label(*gathered(run.full(label, source[0].shape).expand(target.shape)))
    made.constant = label.constant
    return made


@rule(
    "zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "randint_like",
    "bernoulli", "native_dropout",
)  # fmt: skip
def like(run: Propagation, op: Op) -> Label:
    """A new tensor with the channels of another, none of which is 0 but where all are."""
    label = run.label(op.args[0]) or Label()
    return label.same() if label.name or op.name == "zeros_like" else label.loud()


@rule("new_zeros", "new_ones", "new_empty", "new_full", "new_empty_strided", same=sizes)
def new(run: Propagation, op: Op) -> Label:
    """A new tensor of another's kind, without its channels."""
    return Label()

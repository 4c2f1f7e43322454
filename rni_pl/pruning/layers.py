"""Rules of the operations that have weights: what they read, make and scale.

A rule is given the labels of a run and the operation at hand, after it was carried out, and returns
the label of each result.
"""

import math
from typing import Any

import torch
from torch import Tensor

from rni_pl.pruning.ids import NO_IDS, Axis, Label, Unclear, zeros
from rni_pl.pruning.ops import Op, rule
from rni_pl.pruning.propagate import Propagation
from rni_pl.pruning.rules import meet
from rni_pl.pruning.shapes import CONVOLUTIONS, TRANSPOSED


def _steps(op: Op) -> list[Any]:
    return [op.get(name) for name in ("stride", "padding", "dilation", "output_padding")]


@rule(*CONVOLUTIONS, *TRANSPOSED, "deform_conv2d", same=_steps)
def convolution(run: Propagation, op: Op) -> Label:
    """Reads channels and makes new ones; a grouped one ties what its groups share."""
    x, weight = op.args[:2]
    bias = op.get("bias")
    transposed = op.name in TRANSPOSED
    per_group = weight.size(0) if transposed else weight.size(1)
    groups = op.get("groups", x.size(1) // per_group)
    batch = "n" * (x.ndim - weight.ndim + 1)  # none for a single image without its dimension
    dim, kernel = len(batch), "." * (weight.ndim - 2)
    positions = x if transposed else op.out
    run.count(weight, weight.numel() * (positions.numel() // positions.size(dim)))
    inputs, terms = _read(run, x, dim), [(x, batch + "c" + kernel)]
    if inputs is None:
        inputs, terms = Axis(zeros(x.size(dim))), []
    if groups == 1:
        terms += [(weight, ("co" if transposed else "oc") + kernel), (bias, "o")]
        made = meet(run, terms, batch + "o" + kernel)
        outputs = made.axes.get(dim, Axis(zeros(op.out.size(dim))))
    else:
        made = meet(run, terms, batch + "c" + kernel)
        outputs = made.axes[dim] = _grouped(run, op, groups, inputs, weight, bias)
    run.note_layer(inputs.ids, outputs.ids)  # type: ignore[arg-type]
    return Label(made.axes)


def _grouped(
    run: Propagation, op: Op, groups: int, inputs: Axis, weight: Tensor, bias: Any
) -> Axis:
    """Tie the channels of a grouped convolution in whichever way leaves the smaller groups of them.

    Either each group of the convolution loses the same places among what it reads and makes, or
    groups go as a whole; a depthwise convolution is the case of one channel a group. What a group
    makes then is 0 where all that it reads is, and it adds no bias.
    """
    if op.name in TRANSPOSED:  # the weight has the inputs of all groups by the outputs of one
        run.bind(weight, 0, inputs.ids)  # type: ignore[arg-type]
        outputs = _outputs_of_transposed(run, groups * weight.size(1), bias)
    else:
        outputs = run.rows(weight, 0)
    if bias is not None:
        run.bind(bias, 0, outputs.ids)  # type: ignore[arg-type]
    reads, makes = (axis.ids.view(groups, -1) for axis in (inputs, outputs))  # type: ignore[union-attr]
    if op.name not in TRANSPOSED and weight.size(1) > groups:  # the same places of each group
        run.tie(reads[:1].expand_as(reads), reads)
        run.tie(makes[:1].expand_as(makes), makes)
        run.read(inputs)
        run.bind(weight, 1, reads[0])
        run.channels.columns.add((run.label(weight).name, 1))  # type: ignore[union-attr]
        return outputs
    if weight.size(1) > 1:
        run.bind(weight, 1, zeros(weight.size(1)))
    if reads.size(1) > 1:
        run.tie(reads[:, :1].expand_as(reads), reads)
    first, biased = reads[:, 0], bias is not None and not run.channels.by_rows
    run.tie(first if makes.size(1) == 1 else first.repeat_interleave(makes.size(1)), outputs.ids)  # type: ignore[arg-type]
    if inputs.loud is False:
        return Axis(outputs.ids, loud=biased)
    loud = (inputs.signed.view(groups, -1) < 0).any(1, keepdim=True) | biased
    return Axis(outputs.ids, loud.expand_as(makes).flatten())


def _outputs_of_transposed(run: Propagation, count: int, bias: Any) -> Axis:
    known = run.channels.layers.get(run.op.layer)
    if bias is not None:
        return run.rows(bias, 0)
    if known is not None:  # an earlier call, or an earlier run, has begun them
        return Axis(known.outputs, loud=not run.channels.by_rows)
    return Axis(run.new(count), loud=not run.channels.by_rows)


@rule("linear")
def linear(run: Propagation, op: Op) -> Label:
    """Reads the last dimension and makes new channels there."""
    x, weight = op.args[:2]
    run.count(weight, x.numel() // x.size(-1) * weight.numel(), x)
    lead = _digits(x.ndim - 1)
    inputs = _read(run, x, x.ndim - 1)
    terms: list[Any] = [] if inputs is None else [(x, lead + "c")]
    made = meet(run, [*terms, (weight, "oc"), (op.get("bias"), "o")], lead + "o")
    made.name = ""
    outputs = made.axes.get(x.ndim - 1)
    reads = inputs or Axis(zeros(x.size(-1)))
    makes = outputs or Axis(zeros(weight.size(0)))
    run.note_layer(reads.ids, makes.ids)  # type: ignore[arg-type]
    return made


def _read(run: Propagation, x: Tensor, dim: int) -> Axis | None:
    """The channels that are read; None: they are mixed, and stay."""
    try:
        return run.along(x, dim)
    except Unclear as error:
        run.hold((run.label(x) or Label()).ids(), str(error))
        return None


def _digits(count: int) -> str:
    return "".join(map(str, range(count)))


@rule("batch_norm")
def batch_norm(run: Propagation, op: Op) -> Label:
    """Scales each channel: where its scale ranks it, a channel is 0 from here on or stays."""
    x, weight, *others = op.args[:5]
    ids = run.along(x, 1).ids
    assert ids is not None
    for parameter in (weight, *others):
        if parameter is not None:
            run.bind(parameter, 0, ids)
    run.note_layer(None, ids)
    scale = None if weight is None else run.label(weight)
    ranked = scale is not None and scale.silent_at is not None
    label = run.label(x) or Label()
    return Label({**label.axes, 1: Axis(ids, loud=not ranked)})


@rule("instance_norm", "prelu")
def channelwise(run: Propagation, op: Op) -> Label:
    """Works within each channel, with parameters for each, and leaves it at 0 if it was."""
    x = op.args[0]
    lead = ("n1" if x.ndim > 1 else "1") + _digits(x.ndim)[2:]
    parameters = [p for p in op.tensors[1:] if p.numel() > 1]
    made = meet(run, [(x, lead), *((p, "1") for p in parameters)], lead)
    run.note_layer(None, run.along(x, min(1, x.ndim - 1)).ids)  # type: ignore[arg-type]
    made.name = ""
    if op.get("use_input_stats") is False and op.get("weight") is None:  # statistics shift 0
        return made.loud()
    return made


@rule("group_norm", same=lambda op: op.args[0].size(1) // op.args[1])
def group_norm(run: Propagation, op: Op) -> Label:
    """Channels that are normalised together go together."""
    x, groups = op.args[:2]
    ids = run.along(x, 1).signed
    together = ids.view(groups, -1)
    run.tie(together[:, :1].expand_as(together), together)
    silent = (together >= 0).all(1, keepdim=True)
    axis = Axis.of(torch.where(silent, together, -together.abs()).flatten())
    for parameter in op.tensors[1:]:
        run.bind(parameter, 0, axis.ids)  # type: ignore[arg-type]
    run.note_layer(None, axis.ids)  # type: ignore[arg-type]
    made = meet(run, [(x, "n1" + "." * (x.ndim - 2))], "n1" + "." * (x.ndim - 2))
    return Label({**made.axes, 1: axis})


@rule("layer_norm", "rms_norm")
def layer_norm(run: Propagation, op: Op) -> Label:
    """Normalises over channels: what it reads stays."""
    x, last = op.args[0], len(op.args[1])
    lead, over = _digits(x.ndim - last), "ABCDEFGH"[:last]
    return meet(run, [(x, lead + over), *((p, over) for p in op.tensors[1:])], lead + over)


@rule("_weight_norm")
def weight_norm(run: Propagation, op: Op) -> Label:
    """A weight with its norm over all but one dimension."""
    direction, length = op.args[:2]
    for d in range(direction.ndim):
        ids = zeros(direction.size(d))
        if d == op.get("dim"):
            ids = run.along(direction, d).ids  # type: ignore[assignment]
            run.bind(length, d, ids)
        run.bind(direction, d, ids)
    label = run.label(direction)
    return label.same() if label is not None else Label()


@rule("embedding")
def embedding(run: Propagation, op: Op) -> Label:
    """Picks rows of a table, which stay, and makes channels of its columns."""
    table, last = op.args[0], op.out.ndim - 1
    run.bind(table, 0, zeros(table.size(0)))
    made = run.rows(table, 1)
    run.note_layer(None, made.ids)  # type: ignore[arg-type]
    return Label({last: made})


@rule("lstm", "gru", "rnn_tanh", "rnn_relu")
def recurrent(run: Propagation, op: Op) -> list[Label]:
    """Reads channels with the weights of its first layer; its states keep their width."""
    x, weights = op.args[0], op.get("params")
    directions = 2 if op.get("bidirectional") else 1
    each = len(weights) // directions // op.get("num_layers")
    axis = run.along(x, -1)
    for first in weights[: directions * each : each]:
        run.contract(axis, run.label(x), first, 1)
    for weight in weights:
        run.count(weight, x.numel() // x.size(-1) * weight.numel() * (weight.ndim == 2))
        run.fix(weight, run.label(weight))
    for state in op.tensors[1:]:
        if (label := run.label(state)) and not label.name:
            run.hold(label.ids(), "has states of a fixed width")
    run.hold(NO_IDS, "keeps the width of its states")
    run.note_layer(axis.ids, zeros(1))
    return [Label() for _ in op.results]


@rule("scaled_dot_product_attention")
def attention(run: Propagation, op: Op) -> Label:
    """Queries and keys stay, whose width is a factor; the values' channels pass."""
    query, key, value = op.args[:3]
    for x in (query, key):
        if label := run.label(x):
            run.hold(label.ids(), "scales by the width")
            run.fix(x, label)
    letters = [*_digits(value.ndim - 2), ".", "v"]
    made = meet(run, [(value, letters)], letters)
    if made.full is not None:
        made.full = made.full.expand(op.out.shape)
    return Label(made.axes, made.full)


@rule("mm", "bmm", "matmul", "mv", "dot")
def product(run: Propagation, op: Op) -> Label:
    """A product of matrices, of vectors, or of stacks of them."""
    one, other = op.args
    lead = max(one.ndim, other.ndim, 2) - 2
    terms = []
    for x, letters in ((one, "ik"), (other, "kj")):
        letters = letters if x.ndim > 1 else "k"
        terms.append((x, [*_digits(lead)[lead - max(x.ndim - 2, 0) :], *letters]))
    rows, columns = "i" * (one.ndim > 1), "j" * (other.ndim > 1)
    return _counted(run, terms, [*_digits(lead), *rows, *columns])


@rule("einsum")
def einsum(run: Propagation, op: Op) -> Label:
    """A product of tensors by the letters of their dimensions."""
    given, arrow, made = op.args[0].replace(" ", "").lower().partition("->")
    if "." in given or any(len(set(term)) < len(term) for term in given.split(",")):
        raise Unclear("leaves dimensions out of its equation or takes a diagonal")
    if not arrow:
        made = "".join(sorted(c for c in set(given) if c != "," and given.count(c) == 1))
    return _counted(run, list(zip(op.args[1], given.split(","), strict=True)), list(made))


def _counted(run: Propagation, terms: list[Any], out: list[str]) -> Label:
    """The label of a product, whose multiplications are counted."""
    sizes: dict[str, int] = {}
    for x, letters in terms:
        others = [c for y, more in terms if y is not x for c in more]
        for d, letter in enumerate(letters):
            if letter in out or letter in others:  # others are summed before
                sizes[letter] = max(sizes.get(letter, 1), x.size(d))
    for x, _ in terms:
        run.count(x, math.prod(sizes.values()), *(y for y, _ in terms if y is not x))
    made = meet(run, terms, out)
    run.note_layer(None, zeros(1))
    return made

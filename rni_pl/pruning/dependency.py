"""Dependency groups: channels that can only be removed together, and the layers that hold them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from rni_pl.copying import Parts
from rni_pl.errors import PruningError
from rni_pl.pruning.channels import Channels, Comparison, LayerChannels
from rni_pl.pruning.ids import Label, all_ids
from rni_pl.pruning.ops import Misfit, Record
from rni_pl.pruning.propagate import Propagation
from rni_pl.pruning.watch import Example, forward

CONTAINERS = nn.Sequential, nn.ModuleList, nn.ModuleDict


@dataclass
class DependencyGraph:
    """Groups of channels that can only be removed together, and the layers that hold them.

    Attributes:
        parts: of the network.
        channels: ids of channels, as the runs left them.
        runs: the operations in evaluation and, where it was run, in training.
        real: whether tensors had values.
        example: what it was run on.
        group_of: the dependency group of each id; group 0 is all that has to stay.
        layers: layer -> the groups of the channels that it reads and makes.
        scaled: norm layers whose scales rank channels, in forward order.
        reasons: group -> why it has to stay.
        coupled: group tied by residual additions -> one such addition.
        size: the number of groups.
        twin: the copy that was run.
        training_example: what it was run on in training.
        has_more: layers or code that only runs in training.
    """

    parts: Parts
    example: Example
    channels: Channels
    runs: dict[bool, list[Record]] = field(default_factory=dict)
    real: bool = False
    group_of: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.long, device="cpu"))
    layers: dict[str, LayerChannels] = field(default_factory=dict)
    scaled: list[str] = field(default_factory=list)
    reasons: dict[int, str] = field(default_factory=dict)
    coupled: dict[int, str] = field(default_factory=dict)
    size: int = 1
    twin: Parts | None = None
    training_example: Example | None = None
    has_more: bool = False
    _groups: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def model(self) -> nn.Module:
        """The network."""
        return self.parts.network

    def resolve(self) -> None:
        """Number the groups, from 1 in the order in which they appear."""
        channels = self.channels
        self._groups.clear()
        roots, self.group_of = torch.unique(channels.union.roots(), return_inverse=True)
        self.size = len(roots)
        self.layers = {
            name: LayerChannels(
                None if each.inputs is None else self.group_of[each.inputs],
                self.group_of[each.outputs],
            )
            for name, each in channels.layers.items()
        }
        self.scaled = [name for name in channels.scaled if name in self.layers]
        self.reasons = self._first(channels.fixed)
        self.coupled = self._first(channels.coupled)

    def _first(self, noted: list[tuple[Tensor, str]]) -> dict[int, str]:
        """What was noted first about each group."""
        found: dict[int, str] = {}
        for ids, why in reversed(noted):
            found.update(dict.fromkeys(self.group_of[ids].tolist(), why))
        return found

    def parameters(self) -> Iterator[tuple[str, dict[int, Tensor]]]:
        """Every parameter and buffer that holds channels, and the groups along its dimensions.

        Those that hold the same channels are given the same tensor.
        """
        for name, label in self.channels.parameters.items():
            found: dict[int, Tensor] = {}
            for d, axis in label.axes.items():
                if axis.ids is None:
                    continue
                key = id(axis.ids)
                if key not in self._groups:
                    self._groups[key] = axis.ids, self.group_of[axis.ids]
                found[d] = self._groups[key][1]
            yield name, found

    def fix(self, ids: Tensor, why: str) -> bool:
        """Keep channels for good; whether any of them could have gone before."""
        ids = ids.abs().unique()
        groups = self.group_of[ids]
        free = [g for g in groups.unique().tolist() if g and g not in self.reasons]
        self.channels.fixed.append((ids[ids > 0], why))
        self.reasons.update(dict.fromkeys(free, why))
        return bool(free)

    def records(self) -> Iterator[Record]:
        """All operations."""
        for records in self.runs.values():
            yield from records

    def calls(self, layer: str) -> list[Record]:
        """The operations of a layer, in evaluation if it has any there."""
        for records in self.runs.values():
            found = [r for r in records if r.layer == layer and r.activations]
            if found:
                return found
        return []

    def why_unknown(self, layer: str) -> str:
        """Why nothing is known of the channels of a norm layer."""
        if layer in self.channels.unfollowed:
            return self.channels.unfollowed[layer]
        if self.parts.modules[layer].num_features == 1:
            return "has a single channel"
        for record in self.calls(layer):
            return f"has a scale that does not silence a channel at 0 ({record.place})"
        return "is not reached by the forward pass"

    def why_fixed(self, layer: str) -> str:
        """Why the channels of a norm layer are among those that nothing can be said of."""
        record: Record | None = self.calls(layer)[0]
        while record is not None:
            if record.unclear:
                return f"comes from {record.unclear}"
            numbers = [source for source in record.sources if type(source) is int]
            record = self._evaluated[numbers[0]] if numbers else None
        return "holds the network's input or other fixed channels"

    def maker_of(self, norm: str) -> str | None:
        """The layer with weights right in front of a norm layer, where nothing else reads it.

        None as well where one of the two shares its parameters with other layers.
        """
        records, calls = self._evaluated, self.calls(norm)
        source = calls[0].sources[0] if len(calls) == 1 else None
        if type(source) is not int or self._readers(source) != [calls[0]]:
            return None
        name = records[source].layer
        makes = name in self.layers and self.layers[name].inputs is not None
        once = sum(r.layer == name for r in records) == 1  # its parameters are not used elsewhere
        return (
            name if makes and once and not self._shares(name) and not self._shares(norm) else None
        )

    def norm_behind(self, layer: str) -> str | None:
        """The norm layer that only reads the output of a layer that is called once."""
        calls = self.calls(layer)
        if len(calls) != 1 or calls[0] not in self._evaluated:
            return None
        readers = self._readers(self._evaluated.index(calls[0]))
        name = readers[0].layer if len(readers) == 1 else ""
        return name if name in self.scaled and len(self.calls(name)) == 1 else None

    def groups_through(self, wanted: Callable[[Record], bool]) -> Tensor:
        """Groups that an operation for which `wanted` holds reads or makes."""
        labels = [x for r in self.records() if wanted(r) for x in (*r.inputs, *r.outputs)]
        return self.group_of[all_ids(labels)].unique()

    @property
    def _evaluated(self) -> list[Record]:
        return self.runs[False]

    def _readers(self, number: int) -> list[Record]:
        """The operations that are given the result of one; all, where it is an output too."""
        return [r for r in self._evaluated if number in [s for s in r.sources if type(s) is int]]

    def _shares(self, layer: str) -> bool:
        """Whether a layer's parameters are those of another one, too."""
        module, shared = self.parts.modules[layer], self.parts.shared()
        return any(owner is module and name in shared for name, owner, _ in self.parts.places)

    def fits(
        self,
        network: Parts,
        kept: Tensor,
        left: dict[int, tuple[Tensor, Tensor]],
        masked: Parts | None = None,
    ) -> bool:
        """Run a pruned network: whether each operation gives what it did, less what was removed.

        Where it does not, the channels that reach that line of the network's code are fixed.
        `network` carries the ids of `kept` (bool, shape (ids,)), as `left` has them already; its
        tensors may have no content.
        Where the code decides by values, `masked` is the network with removed channels at 0, whose
        way through the code is the one to compare with.
        """
        groups = self.group_of.clone()
        groups[torch.isin(groups, torch.tensor([0, *self.reasons], device="cpu"))] = 0
        for training, records in self.runs.items():
            expected = records
            example = (training and self.training_example) or self.example
            if masked is not None:
                known = self.size, len(self.reasons)
                expected = self._rerun(masked, example, training)
                if known != (self.size, len(self.reasons)):
                    return False  # it took another way, and more is known now
            before = Comparison(expected, kept, groups, left)
            under = Propagation(self.channels, not self.real, before=before)
            try:
                forward(network, example, under, training)
            except Exception as error:  # whatever the network's code may raise
                return self._fix_misfit(error, under, expected)
            if len(under.records) < len(expected):
                return self._fix_misfit(Misfit("ends earlier"), under, expected)
        return True

    def _rerun(self, masked: Parts, example: Example, training: bool) -> list[Record]:
        under = Propagation(self.channels, meta=False)
        forward(masked, example, under, training)
        self.resolve()
        return under.records

    def _fix_misfit(self, error: Exception, under: Propagation, expected: list[Record]) -> bool:
        """Fix the channels at the operation that does not fit; if none are, those around it."""
        place = len(under.records) - under.busy
        record = expected[min(max(place, 0), len(expected) - 1)]
        reason = str(error).strip().splitlines() or [type(error).__name__]
        why = f"feeds {record.place}, which does not fit fewer channels ({reason[0]})"
        # Numbers in the network's code fit nowhere that they are used: one round for all places.
        near = [record] if record.layer else _alike(record, expected)
        steps: Sequence[list[Label]] = (
            [x for r in near for x in (r.activations if record.layer else r.outputs)],
            [x for r in near for x in (*r.activations, *r.outputs)],
            [x for r in expected if record.line and r.line == record.line for x in r.activations],
            *(_within(expected, place, 2**n) for n in range(len(expected).bit_length() + 1)),
        )
        for labels in steps:
            if self.fix(all_ids(labels), why):
                return False
        raise PruningError(f"nothing to prune: {why}")


def _within(records: list[Record], place: int, steps: int) -> list[Label]:
    """The labels of all operations that are at most so many steps away."""
    near = records[max(place - steps, 0) : place + steps]
    return [x for r in near for x in r.activations]


def _alike(record: Record, records: list[Record]) -> list[Record]:
    """The operations that are carried out at the same place of the same line of code."""
    if record.line is None:
        return [record]
    places: dict[int, list[Record]] = {}
    place, before = 0, None
    for each in records:
        place = place + 1 if before is not None and before.line == each.line else 0
        before = each
        if each.line == record.line and each.func is record.func:
            places.setdefault(place, []).append(each)
    return next(found for found in places.values() if record in found)

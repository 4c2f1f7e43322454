"""Dependency groups: channels that can only be removed together, and the layers that hold them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from rni_pl.pruning.channels import Channels, LayerChannels
from rni_pl.pruning.copying import Parts
from rni_pl.pruning.ids import all_ids
from rni_pl.pruning.importance import makes_rows, rows_of
from rni_pl.pruning.ops import Op
from rni_pl.pruning.run import Example

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
        scaled: norm layers whose scales silence channels, in forward order.
        ranked: layers whose channels are ranked, in forward order: these, or those that make
            channels.
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
    runs: dict[bool, list[Op]] = field(default_factory=dict)
    real: bool = False
    group_of: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.long, device="cpu"))
    layers: dict[str, LayerChannels] = field(default_factory=dict)
    scaled: list[str] = field(default_factory=list)
    ranked: list[str] = field(default_factory=list)
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
                None if each.inputs is None else self._groups_of(each.inputs),
                self._groups_of(each.outputs),
            )
            for name, each in channels.layers.items()
        }
        self.scaled = [name for name in channels.scaled if name in self.layers]
        self.ranked = self._makers() if channels.by_rows else self.scaled
        self.reasons = self._first(channels.fixed)
        self.coupled = self._first(channels.coupled)

    def _makers(self) -> list[str]:
        """Layers with a weight whose rows make channels."""
        modules = self.parts.modules
        return [
            name for name, layer in self.layers.items()
            if makes_rows(modules[name]) and len(rows_of(modules[name])) == len(layer.outputs)
        ]  # fmt: skip

    def title(self, layer: str) -> str:
        """What a ranked layer is called: by the norm layer behind it, where there is one."""
        return layer if layer in self.scaled else self.norm_behind(layer) or layer

    def _first(self, noted: list[tuple[Tensor, str]]) -> dict[int, str]:
        """What was noted first about each group."""
        if not noted:
            return {}
        count = torch.tensor([len(ids) for ids, _ in noted], device="cpu")
        groups = self.group_of[torch.cat([ids for ids, _ in noted])]
        first = torch.full((self.size,), len(noted), device="cpu")
        order = torch.arange(len(noted), device="cpu").repeat_interleave(count)
        first.scatter_reduce_(0, groups, order, "amin")
        first[0] = len(noted)
        found = (first < len(noted)).nonzero().flatten()
        return {
            group: noted[place][1]
            for group, place in zip(found.tolist(), first[found].tolist(), strict=True)
        }

    def parameters(self) -> Iterator[tuple[str, dict[int, Tensor]]]:
        """Every parameter and buffer that holds channels, and the groups along its dimensions.

        Those that hold the same channels are given the same tensor.
        """
        for name, label in self.channels.parameters.items():
            yield (
                name,
                {
                    d: self._groups_of(axis.ids)
                    for d, axis in label.axes.items()
                    if axis.ids is not None
                },
            )

    def _groups_of(self, ids: Tensor) -> Tensor:
        """The groups of a vector of ids; the same tensor each time that it is asked for."""
        key = id(ids)
        if key not in self._groups:
            self._groups[key] = ids, self.group_of[ids]
        return self._groups[key][1]

    def fix(self, ids: Tensor, why: str) -> bool:
        """Keep channels for good; whether any of them could have gone before."""
        groups = self.group_of[ids.abs()]
        free = [g for g in groups.unique().tolist() if g and g not in self.reasons]
        self.channels.fixed.append((ids.abs(), why))
        self.reasons.update(dict.fromkeys(free, why))
        return bool(free)

    def all_ops(self) -> Iterator[Op]:
        """All operations."""
        for ops in self.runs.values():
            yield from ops

    def calls(self, layer: str) -> list[Op]:
        """The operations of a layer, in evaluation if it has any there."""
        for ops in self.runs.values():
            found = [r for r in ops if r.layer == layer and r.activations]
            if found:
                return found
        return []

    def why_unknown(self, layer: str) -> str:
        """Why nothing is known of the channels of a norm layer."""
        if layer in self.channels.unfollowed:
            return self.channels.unfollowed[layer]
        if self.parts.modules[layer].num_features == 1:
            return "has a single channel"
        for op in self.calls(layer):
            return f"has a scale that does not silence a channel at 0 ({op.place})"
        return "is not reached by the forward pass"

    def why_fixed(self, layer: str) -> str:
        """Why the channels of a norm layer are among those that nothing can be said of."""
        op: Op | None = self.calls(layer)[0]
        while op is not None:
            if op.unclear:
                return f"comes from {op.unclear}"
            numbers = [source for source in op.sources if type(source) is int]
            op = self._evaluated[numbers[0]] if numbers else None
        return "holds the network's input or other fixed channels"

    def maker_of(self, norm: str) -> str | None:
        """The layer with weights right in front of a norm layer, where nothing else reads it.

        None as well where one of the two shares its parameters with other layers.
        """
        ops, calls = self._evaluated, self.calls(norm)
        source = calls[0].sources[0] if len(calls) == 1 else None
        if type(source) is not int or self._readers(source) != [calls[0]]:
            return None
        name = ops[source].layer
        makes = name in self.layers and self.layers[name].inputs is not None
        once = sum(r.layer == name for r in ops) == 1  # its parameters are not used elsewhere
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

    def groups_through(self, wanted: Callable[[Op], bool]) -> Tensor:
        """Groups that an operation for which `wanted` holds reads or makes."""
        labels = [x for r in self.all_ops() if wanted(r) for x in (*r.inputs, *r.outputs)]
        return self.group_of[all_ids(labels)].unique()

    @property
    def _evaluated(self) -> list[Op]:
        return self.runs[False]

    def _readers(self, number: int) -> list[Op]:
        """The operations that are given the result of one; all, where it is an output too."""
        return [r for r in self._evaluated if number in [s for s in r.sources if type(s) is int]]

    def _shares(self, layer: str) -> bool:
        """Whether a layer's parameters are those of another one, too."""
        module, shared = self.parts.modules[layer], self.parts.shared()
        return any(owner is module and name in shared for name, owner, _ in self.parts.places)

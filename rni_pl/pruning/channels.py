"""What runs of a network note of its channels."""

from dataclasses import dataclass, field

from torch import Tensor

from rni_pl.pruning.ids import Axis, Label, UnionFind


@dataclass
class LayerChannels:
    """Ids of the channels that a layer reads (None: it keeps what it is given) and makes."""

    inputs: Tensor | None
    outputs: Tensor


@dataclass
class Channels:
    """All that is known of a network's channels, of however many runs.

    Attributes:
        by_rows: layers that make channels rank them, whose rows and biases are 0 where a channel is
            removed; else norm layers do, by their scales.
        union: which ids can only go together.
        parameters: name of a parameter or buffer -> the ids along its dimensions.
        layers: layers with weights for channels, by name.
        scaled: norm layers whose scales rank channels, in forward order.
        fixed: ids that have to stay, and why.
        coupled: ids that additions tie, and where.
        constants: ids that readers see as a constant which the removal takes away.
        columns: names and dimensions of parameters along which channels are read.
        costs: parameter -> how often each element is multiplied, for one image.
        beside: parameter -> channels for each of which it is multiplied, if not its own.
        unfollowed: layer -> what of it could not be followed.
    """

    by_rows: bool = False
    union: UnionFind = field(default_factory=UnionFind)
    parameters: dict[str, Label] = field(default_factory=dict)
    layers: dict[str, LayerChannels] = field(default_factory=dict)
    scaled: dict[str, None] = field(default_factory=dict)
    fixed: list[tuple[Tensor, str]] = field(default_factory=list)
    coupled: list[tuple[Tensor, str]] = field(default_factory=list)
    constants: list[Tensor] = field(default_factory=list)
    columns: set[tuple[str, int]] = field(default_factory=set)
    costs: dict[str, int] = field(default_factory=dict)
    beside: dict[str, list[Axis]] = field(default_factory=dict)
    unfollowed: dict[str, str] = field(default_factory=dict)

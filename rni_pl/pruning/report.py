"""What pruning removed and what it left, as a table."""

from dataclasses import asdict, dataclass, field
from html import escape
from typing import Any

from torch import nn

from rni_pl import norm
from rni_pl.pruning.absorb import Absorbed
from rni_pl.pruning.copying import Parts
from rni_pl.pruning.costs import Costs
from rni_pl.pruning.dependency import DependencyGraph
from rni_pl.pruning.plan import Plan, PruningOptions, why_stays
from rni_pl.pruning.planfile import BY, fingerprint

HEAD = ["layer", "before", "after", "stays", "why it is whole"]


@dataclass
class PruningReport:
    """What was removed and what was not; ``print(report)`` is a table.

    Attributes:
        ratio: the share that was asked for, or ``"auto"``, or ``"plan"``.
        scope: ``"global"`` or ``"local"``.
        target: what `ratio` is a share of.
        kept: norm layer -> sorted indices of the channels it keeps, in forward order.
        skipped: norm layer that was left whole -> the reason.
        widths: norm layer in `kept` -> its number of channels before.
        absorbed: what became of the constants that removed channels emit; None: nothing was done.
        limited: whether `min_channels`, `max_ratio` or `round_to` had the layers keep more
            channels, all in all, than their scores say, where `ratio` is a share of channels.
        constants: layers that read a constant of removed channels, which went with them.
        params: parameters before and after.
        macs: multiply-accumulates of one image before and after, of layers with weights.
        whole: norm layer in `skipped` -> its number of channels.
        network: fingerprint of the network before.
        by: what was ranked, ``"scales"`` of norm layers, or ``"rows"`` of layers that make
            channels; then these are the layers above, where no norm layer is behind them.
    """

    ratio: float | str
    scope: str
    target: str
    kept: dict[str, list[int]]
    skipped: dict[str, str]
    widths: dict[str, int]
    absorbed: Absorbed | None
    limited: bool = False
    constants: bool = False
    params: tuple[int, int] = (0, 0)
    macs: tuple[int, int] = (0, 0)
    whole: dict[str, int] = field(default_factory=dict)
    network: str = ""
    by: str = "scales"

    @property
    def plan(self) -> dict[str, Any]:
        """What ``prune(model, example, plan=...)`` carries out, in plain values."""
        return {"network": self.network, "by": self.by, "kept": self.kept}

    @property
    def channels_dense(self) -> int:
        """Channels of the layers in `kept`, before."""
        return sum(self.widths.values())

    @property
    def channels_pruned(self) -> int:
        """Channels of the layers in `kept`, after."""
        return sum(len(channels) for channels in self.kept.values())

    @property
    def removed(self) -> float:
        """The share of the channels of the layers in `kept` that was removed."""
        return 1 - self.channels_pruned / self.channels_dense if self.widths else 0.0

    def to_dict(self) -> dict[str, Any]:
        """All of it in plain values."""
        return {**asdict(self), "removed": self.removed}

    def rows(self) -> list[list[str]]:
        """Layer, channels before and after, the share that stays, and why it is whole."""
        sizes = [(name, self.widths[name], len(kept), "") for name, kept in self.kept.items()]
        sizes += [
            (name, self.whole[name], self.whole[name], why) for name, why in self.skipped.items()
        ]
        return [
            [name, f"{before}", f"{after}", f"{after / before:.0%}", why]
            for name, before, after, why in sizes
        ]

    def summary(self) -> list[str]:
        """The totals, and what is to be known beside them."""
        channels = f"{self.channels_dense} -> {self.channels_pruned} channels"
        lines = [f"{channels} of {len(self.kept)} layers ({self.removed:.1%} removed)"]
        asked = self.ratio if self.target == "channels" else None
        if isinstance(asked, float | int) and abs(self.removed - asked) > 0.005:
            more = self.limited and self.removed < asked
            cause = "; min_channels, max_ratio or round_to keep more" if more else ""
            lines[0] += f", asked: {asked:.1%}{cause}"
        for name, (before, after) in (("parameters", self.params), ("MACs", self.macs)):
            if before:
                lines.append(f"{before:,} -> {after:,} {name} ({1 - after / before:.1%} removed)")
        if self.constants and self.absorbed is None:
            lines.append("removed channels were constants other than 0, which went with them")
        return lines

    def __str__(self) -> str:
        """The table."""
        rows = [HEAD, *self.rows()]
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:4], widths[1:]), row[4]])
            for row in rows
        ]
        return "\n".join([*(line.rstrip() for line in lines), "", *self.summary()])

    def _repr_html_(self) -> str:
        """The table in a notebook."""
        rows = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in self.rows()]
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        head = "".join(f"<th>{title}</th>" for title in HEAD)
        totals = "<br>".join(escape(line) for line in self.summary())
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table><p>{totals}</p>"


def report_of(
    graph: DependencyGraph,
    plan: Plan,
    options: PruningOptions,
    pruned: Parts,
    absorbed: Absorbed | None,
) -> PruningReport:
    """What a plan removed."""
    kept, skipped, widths, whole = {}, {}, {}, {}
    for layer in graph.ranked:
        groups, name = graph.layers[layer].outputs, graph.title(layer)
        if bool(plan.removable[groups].any()):
            kept[name] = plan.keep[groups].nonzero().flatten().tolist()
            widths[name] = len(groups)
        else:
            skipped[name], whole[name] = why_stays(graph, layer), len(groups)
    unknown = {} if graph.channels.by_rows else graph.parts.modules
    for name, module in unknown.items():
        if norm.has_scales(module) and name not in graph.scaled:
            skipped[name], whole[name] = graph.why_unknown(name), module.num_features
    costs, everything = Costs(graph), plan.keep.new_ones(graph.size)
    constant = any(not plan.keep[graph.group_of[ids]].all() for ids in graph.channels.constants)
    return PruningReport(
        options.ratio, options.scope, options.target, kept, skipped, widths, absorbed,
        limited=plan.limited,
        constants=constant,
        params=(_count(graph.parts), _count(pruned)),
        macs=(costs.macs(everything), costs.macs(plan.keep)),
        whole=whole,
        network=fingerprint(graph.parts),
        by=BY[graph.channels.by_rows],
    )  # fmt: skip


def _count(parts: Parts) -> int:
    return sum(x.numel() for x in parts.tensors.values() if isinstance(x, nn.Parameter))

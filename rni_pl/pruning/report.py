"""What pruning removed and what it left, as a table."""

from dataclasses import asdict, dataclass, field
from html import escape
from typing import Any

from torch import nn

from rni_pl import norm
from rni_pl.cost import parameter_count
from rni_pl.pruning.absorb import Absorbed
from rni_pl.pruning.dependency import DependencyGraph
from rni_pl.pruning.plan import Plan, PruningOptions, why_stays
from rni_pl.pruning.selection import Costs


@dataclass
class PruningReport:
    """What was removed and what was not; ``print(report)`` is a table.

    Attributes:
        ratio: the share that was asked for, or ``"auto"``.
        scope: ``"global"`` or ``"local"``.
        target: what `ratio` is a share of.
        kept: norm layer -> sorted indices of the channels it keeps, in forward order.
        skipped: norm layer that was left whole -> the reason.
        widths: norm layer in `kept` -> its number of channels before.
        absorbed: what became of the constants that removed channels emit; None: nothing was done.
        limited: whether `min_channels` or `round_to` had the layers keep more channels, all in all,
            than their scores say, where `ratio` is a share of channels.
        constants: layers that read a constant of removed channels, which went with them.
        params: parameters before and after.
        macs: multiply-accumulates of one image before and after, of layers with weights.
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

    def rows(self) -> list[tuple[str, str, str, str, str]]:
        """Layer, channels before and after, share that stays, and why it is whole."""
        found = [
            (
                name,
                f"{self.widths[name]}",
                f"{len(kept)}",
                f"{len(kept) / self.widths[name]:.0%}",
                "",
            )
            for name, kept in self.kept.items()
        ]
        found += [
            (name, f"{n}" if (n := self.whole.get(name)) else "", f"{n}" if n else "", "100%", why)
            for name, why in self.skipped.items()
        ]
        return found

    def summary(self) -> list[str]:
        """The totals, and what is to be known beside them."""
        channels = f"{self.channels_dense} -> {self.channels_pruned} channels"
        lines = [f"{channels} of {len(self.kept)} layers ({self.removed:.1%} removed)"]
        asked = (
            self.ratio if self.target == "channels" and not isinstance(self.ratio, str) else None
        )
        if asked is not None and abs(self.removed - asked) > 0.005:
            more = self.limited and self.removed < asked
            cause = "; min_channels or round_to keep more" if more else ""
            lines[0] += f", asked: {asked:.1%}{cause}"
        for name, (before, after) in (("parameters", self.params), ("MACs", self.macs)):
            if before:
                lines.append(f"{before:,} -> {after:,} {name} ({1 - after / before:.1%} removed)")
        if self.constants and self.absorbed is None:
            lines.append("removed channels were constants other than 0, which went with them")
        return lines

    def __str__(self) -> str:
        """The table."""
        head = ("layer", "before", "after", "stays", "why it is whole")
        rows = [head, *self.rows()]
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        lines = [
            "  ".join(
                [row[0].ljust(widths[0]), *(row[i].rjust(widths[i]) for i in (1, 2, 3)), row[4]]
            )
            for row in rows
        ]
        return "\n".join([*(line.rstrip() for line in lines), "", *self.summary()])

    def _repr_html_(self) -> str:
        """The table in a notebook."""
        head = "".join(f"<th>{h}</th>" for h in ("layer", "before", "after", "stays", "why whole"))
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
            for row in self.rows()
        )
        totals = "<br>".join(escape(line) for line in self.summary())
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table><p>{totals}</p>"


def report_of(
    graph: DependencyGraph,
    plan: Plan,
    options: PruningOptions,
    pruned: nn.Module,
    absorbed: Absorbed | None,
) -> PruningReport:
    """What a plan removed."""
    kept, skipped, widths, whole = {}, {}, {}, {}
    for name in graph.scaled:
        groups = graph.layers[name].outputs
        if bool(plan.removable[groups].any()):
            kept[name] = plan.keep[groups].nonzero().flatten().tolist()
            widths[name] = len(groups)
        else:
            skipped[name], whole[name] = why_stays(graph, name), len(groups)
    for name, layer in norm.scaled_norms(graph.model):
        if name not in graph.scaled:
            skipped[name], whole[name] = graph.why_unknown(name), layer.num_features
    costs = Costs(graph)
    everything = plan.keep.new_ones(graph.size)
    constants = [
        ids for ids in graph.channels.constants if not plan.keep[graph.group_of[ids]].all()
    ]
    return PruningReport(
        options.ratio, options.scope, options.target, kept, skipped, widths, absorbed,
        limited=plan.limited,
        constants=bool(constants),
        params=(parameter_count(graph.model), parameter_count(pruned)),
        macs=(costs.macs(everything), costs.macs(plan.keep)),
        whole=whole,
    )  # fmt: skip

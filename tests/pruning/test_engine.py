"""The engine as a whole: costs, the report, threads, what is refused, and what comes back."""

import builtins
import copy
import html
import json
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import torch
from layer_networks import PRUNED
from masking import difference, masked, randomise
from masking import prepared_layers as prepared
from torch import Tensor, nn
from torch.nn import functional as F
from unusual_networks import Net, conv, head

from rni_pl import models
from rni_pl.cost import macs_on, parameter_count
from rni_pl.errors import PruningError
from rni_pl.pruning import prune
from rni_pl.pruning.costs import Costs
from rni_pl.pruning.structure import resize, structure_of
from rni_pl.pruning.trace import trace

# Costs.

COSTLY = [
    name for name in PRUNED
    if name.startswith(("Conv", "MLP", "LSTM {", "GRU {", "matmul", "einsum", "Embedding", "layer"))
]  # fmt: skip


@pytest.mark.parametrize("name", COSTLY)
def test_costs_are_the_counters(name: str) -> None:
    model, x = prepared(PRUNED[name])
    graph = trace(model, x)
    costs, keep = Costs(graph), torch.ones(graph.size, dtype=torch.bool)
    assert costs.params(keep) == parameter_count(model) - uncounted(model, graph)
    dense = costs.macs(keep)
    assert dense == macs_on(model, (x,), {})
    pruned, report = prune(model, x, 0.5, "local", coupled=True, min_channels=1)
    for layer, kept in report.kept.items():
        groups = graph.layers[layer].outputs
        keep[groups] = False
        keep[groups[kept]] = True
    assert costs.macs(keep) == macs_on(pruned, (x,), {}) < dense
    assert costs.params(keep) == parameter_count(pruned) - uncounted(model, graph)
    assert report.params == (parameter_count(model), parameter_count(pruned))
    assert report.macs == (dense, costs.macs(keep))


def uncounted(model: nn.Module, graph: Any) -> int:
    """Parameters without channels, which no pruning changes."""
    held = {name for name, axes in graph.parameters() if any(a is not None for a in axes)}
    return sum(p.numel() for name, p in model.named_parameters() if name not in held)


@pytest.mark.parametrize("target", ["params", "macs"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_budgets_of_each_rank(rank: int, target: str) -> None:
    model, x = prepared(PRUNED[f"ConvTranspose{rank}d plain"])
    pruned, report = prune(model, x, 0.4, target=target, coupled=True)
    before, after = getattr(report, target)
    assert 1 - after / before == pytest.approx(0.4, abs=0.08)
    counted = parameter_count(pruned) if target == "params" else macs_on(pruned, (x,), {})
    assert after == counted


# The report.


def cumulated(net: Net, x: Tensor) -> Tensor:
    return net.head(net.stem(x)) + net.tail(torch.cumsum(net.other(x), 1))


def reported(**options: Any) -> Any:
    torch.manual_seed(0)
    model = randomise(Net(cumulated, other=conv(3, 10), tail=head(10))).eval()
    return prune(model, torch.randn(2, 3, 8, 8), 0.5, **options)[1]


def test_a_report_is_a_table() -> None:
    report = reported(min_channels=1)
    lines = str(report).splitlines()
    assert lines[0].split()[:4] == ["layer", "before", "after", "stays"]
    rows = {line.split()[0]: line for line in lines[1 : lines.index("")]}
    assert list(rows) == ["stem.1", "head.0.1", "tail.0.1", "other.1"]
    after = len(report.kept["stem.1"])
    assert rows["stem.1"].split()[1:] == ["12", f"{after}", f"{after / 12:.0%}"]
    assert rows["other.1"].split()[1:4] == ["10", "10", "100%"]
    assert rows["other.1"].endswith(report.skipped["other.1"])
    assert "cumsum (test_engine.py:" in rows["other.1"]
    totals = " ".join(lines[lines.index("") :])
    assert "28 -> 14 channels of 3 layers (50.0% removed)" in totals
    assert "asked" not in totals
    for before, now in (report.params, report.macs):
        assert f"{before:,} -> {now:,}" in totals
        assert f"({1 - now / before:.1%} removed)" in totals
    assert (report.channels_dense, report.channels_pruned, report.removed) == (28, 14, 0.5)
    assert report.widths == {"stem.1": 12, "head.0.1": 8, "tail.0.1": 8}


def test_a_report_says_where_another_share_is_removed() -> None:
    report = reported(min_channels=7)
    assert report.limited
    assert "asked: 50.0%; min_channels, max_ratio or round_to keep more" in str(report)
    equal = Net(lambda s, x: s.head(s.stem(x)))  # all scales are 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = prune(equal, torch.randn(1, 3, 8, 8), 0.1)[1]
    assert "asked: 10.0%" in str(report)
    assert "keep more" not in str(report)


def test_a_report_in_plain_values() -> None:
    for report in (reported(), reported(absorb=True, target="macs", scope="local")):
        values = json.loads(json.dumps(report.to_dict()))
        assert values["kept"] == report.kept
        assert values["skipped"] == report.skipped
        assert values["removed"] == report.removed
        assert tuple(values["macs"]) == report.macs
        assert (values["ratio"], values["target"]) == (0.5, report.target)


def test_a_report_in_a_notebook() -> None:
    report = reported()
    shown = report._repr_html_()
    assert shown.count("<tr>") == 5
    report.skipped["other.1"] = why = "feeds <lambda> & more"
    assert html.escape(why) in report._repr_html_()
    assert why not in report._repr_html_()
    assert f"{report.macs[1]:,}" in shown


def test_constants_that_go_are_said() -> None:
    model = randomise(Net(lambda s, x: s.head(torch.sigmoid(s.stem[:2](x))))).eval()
    said = "constants other than 0"
    x = torch.randn(2, 3, 8, 8)
    assert said in str(prune(model, x, 0.5)[1])
    assert said not in str(prune(model, x, 0.5, absorb=True)[1])
    assert said not in str(reported())


# Threads.


def everything() -> list[Any]:
    """What a tracer might replace for the whole process."""
    owners = builtins, torch, torch.nn.functional, Tensor, nn.Module, nn.Conv2d, torch.Tensor
    return [dict(vars(owner)) for owner in owners]


def test_threads_prune_different_networks_at_once() -> None:
    before = everything()
    sources = models.resnet20(norm="sigbn"), Net(cumulated, other=conv(3, 10), tail=head(10))
    given = [randomise(source).eval() for source in sources]
    sizes = (32, 8)
    inputs = [torch.randn(1, 3, size, size) for size in sizes]

    def pruned(place: int) -> tuple[Any, Any]:
        small, report = prune(given[place], inputs[place], 0.5, coupled=True)
        return report.to_dict(), small.state_dict()

    alone = [pruned(0), pruned(1)]
    together = Barrier(2)

    def at_once(place: int) -> list[tuple[Any, Any]]:
        found = []
        for _ in range(100):
            together.wait(60)
            found.append(pruned(place))
        return found

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(at_once, (0, 1)))
    for (report, state), found in zip(alone, results, strict=True):
        assert len(found) == 100
        for other_report, other_state in found:
            assert other_report == report
            assert all(torch.equal(state[key], other_state[key]) for key in state)
    assert everything() == before
    assert "training" not in vars(nn.Module)


def test_nothing_is_replaced_meanwhile_or_after_an_error() -> None:
    seen: list[bool] = []
    before = everything()

    def looks(net: Net, x: Tensor) -> Tensor:
        seen.append(everything() == before)
        return net.head(net.stem(x))

    prune(randomise(Net(looks)), torch.randn(1, 3, 8, 8), 0.5)
    assert seen
    assert all(seen)

    def fails(net: Net, x: Tensor) -> Tensor:
        raise KeyError("no such thing")

    with pytest.raises(PruningError, match="no such thing"):
        prune(Net(fails), torch.randn(1, 3, 8, 8), 0.5)
    assert everything() == before
    torch.zeros(2).add_(1)  # no mode is left behind


# What leaves torch.


def through_numpy(x: Tensor) -> Tensor:
    return torch.from_numpy(x.detach().numpy() * 1.5)


LEAVES: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "values": lambda net, x: net.head(
        (y := net.stem(x)) * float(y.detach().numpy().mean())
    ),
    "channels": lambda net, x: net.head(y := net.stem(x)) + through_numpy(y.softmax(1)).mean(),
    "pixels": lambda net, x: net.head(
        (y := net.stem(x)) + torch.tensor(y.flatten().tolist()).view_as(y).mean(1, keepdim=True)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LEAVES)
def test_channels_that_leave_torch_stay(name: str) -> None:
    model = randomise(Net(LEAVES[name])).eval()
    x = torch.randn(2, 3, 8, 8)
    pruned, report = prune(model, x, 0.5)
    assert "(test_engine.py:" in report.skipped["stem.1"]
    with torch.no_grad():
        assert difference(pruned(x), masked(model, report)(x)) < 1e-4


def test_numbers_are_compared_unless_told_not_to() -> None:
    def normalised(net: Net, x: Tensor) -> Tensor:
        y = net.stem(x)
        numbers = y.detach().numpy()  # the same memory
        numbers /= numbers.shape[1]
        return net.head(y)

    model, x = randomise(Net(normalised)).eval(), torch.randn(2, 3, 8, 8)
    with pytest.raises(PruningError, match="data may leave torch"):
        prune(model, x, 0.5)
    assert prune(model, x, 0.5, verify=False)[1].removed > 0.3


# Structures.


@pytest.mark.parametrize(
    ("layer", "sizes"),
    [
        ("0.0", {"weight": [10**9, 3, 3]}), ("0.0", {"out_channels": -1}), ("0.0", {"stride": 2}),
        ("0.0", {"weight": [8, 3]}), ("0.0", {"weight": 8}), ("0.0", {"forward": 1}),
        ("0.0", {"in_channels": "3"}), ("0.0", {"in_channels": True}), ("0.0", [8]),
        ("nowhere", {"weight": [8]}), ("1", {"num_groups": 2.0}),
    ],
)  # fmt: skip
def test_damaged_structures_are_refused(layer: str, sizes: Any) -> None:
    model, x = prepared(PRUNED["GroupNorm 1"])
    structure = structure_of(prune(model, x, 0.5, coupled=True)[0])
    with pytest.raises(PruningError, match=layer):
        resize(copy.deepcopy(model), {**structure, layer: sizes})


def test_structures_are_plain_values() -> None:
    for name in ("Conv3d grouped", "LSTM {'batch_first': True}", "PReLU 2", "Embedding"):
        model, x = prepared(PRUNED[name])
        pruned, _ = prune(model, x, 0.5, coupled=True, min_channels=1)
        structure = structure_of(pruned)
        assert json.loads(json.dumps(structure)) == structure
        assert structure_of(resize(copy.deepcopy(model), structure)) == structure


def test_activations_are_compared_where_they_make_constants() -> None:
    def softplus(net: Net, x: Tensor) -> Tensor:
        return net.head(F.softplus(net.stem[:2](x)))

    model, x = randomise(Net(softplus)).eval(), torch.randn(2, 3, 8, 8)
    pruned, report = prune(model, x, 0.5)
    gone = [c for c in range(12) if c not in report.kept["stem.1"]]
    model = masked(model, report)
    with torch.no_grad():
        model.head[0][0].weight[:, gone] = 0
        assert difference(pruned(x), model(x)) < 1e-5

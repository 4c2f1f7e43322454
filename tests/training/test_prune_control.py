"""What is pruned, on the command line: importances, layers left alone, plans."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import SHORT
from left_by_runs import summary

from rni_pl.pruning.importance import IMPORTANCES


@pytest.mark.parametrize("importance", IMPORTANCES)
def test_every_importance_is_a_choice(
    importance: str, command: Callable, trained: Path, pruned: Path
) -> None:
    given = (f"checkpoint={trained}", *SHORT, f"prune/importance={importance}")
    done = command("prune", *given, "hydra.run.dir=run")
    assert done.status == 0, done.err
    found = summary(Path("run"))
    assert found["channels_pruned"] / found["channels_dense"] == pytest.approx(0.5, abs=0.01)
    assert "layer1.0.bn1" in found["kept"]
    assert "fc" not in found["kept"]
    assert (found["kept"] == summary(pruned)["kept"]) == (importance == "scale")


def test_layers_by_name(command: Callable, trained: Path) -> None:
    settings = ("prune.ignore=[layer1]", "prune.ratios={layer2.*.bn1: 0.25}", "prune.max_ratio=0.6")
    given = (f"checkpoint={trained}", *SHORT, "prune.ratio=0.9", *settings)
    done = command("prune", *given, "hydra.run.dir=run")
    assert done.status == 0, done.err
    found = summary(Path("run"))
    assert "layer1.0.bn1" in found["skipped"]
    assert {found["kept"][f"layer2.{i}.bn1"] for i in range(3)} == {24}
    assert all(found["kept"][f"layer3.{i}.bn1"] >= 26 for i in range(3))


def test_a_plan_only_and_then_carried_out(command: Callable, trained: Path, pruned: Path) -> None:
    given = (f"checkpoint={trained}", *SHORT)
    done = command("prune", *given, "prune.plan_only=true", "hydra.run.dir=planned")
    assert done.status == 0, done.err
    assert "why it is whole" in done.out
    assert [path.name for path in Path("planned").iterdir()] == ["plan.json"]
    done = command("prune", *given, "prune.plan=planned/plan.json", "hydra.run.dir=run")
    assert done.status == 0, done.err
    found = summary(Path("run"))
    assert found["ratio"] == "plan"
    planned, before = json.loads(Path("planned/plan.json").read_text()), summary(pruned)
    assert {name: found["kept"][name] for name in before["kept"]} == before["kept"]
    assert {name: len(channels) for name, channels in planned["kept"].items()} == before["kept"]
    assert found["acc_finetuned"] == before["acc_finetuned"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("prune/importance=l3",), "prune/importance=l3 is unknown; allowed: fpgm, l1, l2"),
        (("prune.ignore=layer1",), "prune.ignore='layer1' is not allowed; allowed: a list"),
        (("prune.ignore=[layer7]",), "prune.ignore='layer7' matches no layer"),
        (("prune.ratios={layer1: 2}",), "prune.ratios={'layer1': 2} is not allowed"),
        (("prune.max_ratio=1",), "prune.max_ratio=1 is not allowed"),
        (("prune.plan=no.json",), "no.json"),
    ],
)
def test_what_cannot_be_is_one_line(
    settings: tuple[str, ...], message: str, command: Callable, trained: Path
) -> None:
    done = command("prune", f"checkpoint={trained}", *SHORT, *settings, "hydra.run.dir=run")
    assert done.status == 2
    assert message in done.err
    assert done.err.count("\n") == 1
    assert not Path("run").exists()

"""Runs of several budgets: which tables they are in, and what these are called."""

import json
from pathlib import Path

from made_up_runs import composed_run, pruned_from

from rni_pl.report import comparison, grids, papers
from rni_pl.report.__main__ import main
from rni_pl.report.budgets import Budget
from rni_pl.report.collect import collect
from rni_pl.report.departures import judge
from rni_pl.report.tables import tabulate

SHORT = "experiment=short_vgg16"
PRUNE = "experiment=prune_short_vgg16"


def test_each_budget_has_tables_of_its_own(tmp_path: Path) -> None:
    composed_run(tmp_path / "dense", SHORT, f"data.root={tmp_path}", "trainer.max_epochs=2")
    for name, epochs, tuning in (("short", 4, 2), ("long", 8, 4)):
        settings = (SHORT, f"data.root={tmp_path}", f"trainer.max_epochs={epochs}")
        run = composed_run(tmp_path / name, *settings)
        pruned_from(run, PRUNE, f"trainer.max_epochs={tuning}")
    tables = comparison.at_budget(judge(collect([tmp_path]).runs))
    task = "vgg16 on CIFAR-10 (JPEG)"
    budgets = ["2 epochs", "4 + 2 epochs", "8 + 4 epochs"]
    assert [f"{table.budget} epochs" for table in tables] == budgets
    ratios = [[row.ratio for row in table.rows] for table in tables]
    assert ratios == [[None], [None, 0.9], [None, 0.9]]
    assert all(len(table.variants) == 1 for table in tables)  # one line from dense to pruned
    page = tmp_path / "page.md"
    asked = ("", f": {task}", f": {task}, 8 + 4 epochs")
    page.write_text("\n".join(f"<!-- table accuracy{of} -->\n<!-- end -->" for of in asked))
    main([str(tmp_path), "--fill", str(page)])
    text = page.read_text()
    assert [text.count(f"\n{task}, {budget}:\n") for budget in budgets] == [2, 2, 2]
    assert text.count("\n| rni |") == 7  # twice the three, and the one that is asked for


def test_dense_networks_are_shown_once_whatever_they_led_to(tmp_path: Path) -> None:
    run = composed_run(tmp_path / "dense", SHORT, f"data.root={tmp_path}")
    for tuning in (2, 4, 8):
        pruned_from(run, PRUNE, f"trainer.max_epochs={tuning}", name=str(tuning))
    judged = judge(collect([tmp_path]).runs)
    assert len(comparison.at_budget(judged)) == 3
    assert len(comparison.dense_networks(judged)) == 1


def test_budgets_are_what_was_set_or_unknown(tmp_path: Path) -> None:
    run = composed_run(tmp_path / "dense", SHORT, f"data.root={tmp_path}")
    pruned = pruned_from(run, PRUNE, "trainer.max_epochs=8")
    summary = json.loads((pruned / "summary.json").read_text())
    del summary["epochs"]  # as an older version left it
    (pruned / "summary.json").write_text(json.dumps(summary))
    assert [str(one.budget) for one in judge(collect([tmp_path]).runs)] == ["4", "4 + 8"]
    assert str(Budget(None, None, is_tuned=True)) == "unknown + unknown"
    assert not Budget(4, 2, is_tuned=True).holds(Budget(4, None, is_tuned=True))


def test_shares_of_macs_are_columns_of_their_own(tmp_path: Path) -> None:
    for method in ("rni", "l1"):
        settings = (SHORT, f"data.root={tmp_path}", f"method={method}")
        run = composed_run(tmp_path / method, *settings)
        pruned_from(run, PRUNE, name="plain", acc_finetuned=0.7)
        pruned_from(run, PRUNE, "switch=macs", name="macs", acc_finetuned=0.6)
        pruned_from(run, PRUNE, "prune.target=params", name="params", acc_finetuned=0.5)
    runs = collect([tmp_path]).runs
    judged = judge(runs)
    (table,), (all_runs,) = comparison.at_budget(judged), tabulate(runs)
    for grid in (grids.by_ratio(table), grids.by_ratio(all_runs)):
        assert grid.header == ["method", "dense", "0.9", "0.9 of MACs", "0.9 of parameters"]
        assert [row[0] for row in grid.rows] == ["rni", "l1"]
        assert [row[2:] for row in grid.rows] == 2 * [["70.00", "60.00", "50.00"]]
    assert comparison.switches(judged) is None  # these are no switches, and not at 0.9
    pruned_from(run, PRUNE, "switch=cosine", name="cosine", acc_finetuned=0.72)
    switched = comparison.switches(judge(collect([tmp_path]).runs))
    assert switched is not None
    assert [row[2:5] for row in switched.rows] == [
        ["plain", "70.00", "–"], ["optimizer.curve=cosine", "72.00", "+2.00"]
    ]  # fmt: skip
    found = papers.paper(judged)
    assert found is not None
    assert dict(zip(found.grid.header, found.grid.rows[0], strict=True))["rni 0.9"] == "70.00"

"""Runs of several budgets: which tables they are in, and what these are called."""

import json
from pathlib import Path

from made_up_runs import composed_run, pruned_from

from rni_pl.report import comparison
from rni_pl.report.__main__ import main
from rni_pl.report.budgets import Budget
from rni_pl.report.collect import collect
from rni_pl.report.departures import judge

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


def test_ratios_of_macs_have_a_table_of_their_own(tmp_path: Path) -> None:
    for method in ("rni", "l1"):
        settings = (SHORT, f"data.root={tmp_path}", f"method={method}")
        run = composed_run(tmp_path / method, *settings)
        pruned_from(run, PRUNE, acc_finetuned=0.7)
        pruned_from(run, PRUNE, "switch=macs", name=f"{method}_macs", acc_finetuned=0.6)
    both = ("switch=macs", "optimizer.curve=cosine")
    pruned_from(run, PRUNE, *both, name="both", acc_finetuned=0.5)
    judged = judge(collect([tmp_path]).runs)
    (plain,), (by_macs,) = comparison.at_budget(judged), comparison.at_macs(judged)
    methods = [row.variant.label for row in by_macs.rows]
    assert methods == ["rni", "l1"]
    assert [row.figures["acc_finetuned"].mean for row in by_macs.rows] == [0.6, 0.6]
    pruned = [row for row in plain.rows if row.ratio == 0.9]
    assert [row.figures["acc_finetuned"].mean for row in pruned] == [0.7, 0.7]
    assert comparison.switches(judged) is None  # 0.9 of the MACs is another network

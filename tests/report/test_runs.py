"""Runs that a report reads: which it finds, which it cannot use, and which belong together."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from made_up_runs import PRUNE, TRAIN, pruned_run, put, trained_run

from rni_pl.errors import ConfigError
from rni_pl.report import tables
from rni_pl.report.page import csv
from rni_pl.report.runs import COLUMNS, Runs, read
from rni_pl.report.tables import Task


def only_task(*places: Path) -> Task:
    (task,) = tables.tasks(read(places).table)
    return task


def problems(runs: Runs) -> dict[str, str]:
    return {problem.run: problem.reason for problem in runs.problems}


def test_runs_that_differ_in_their_seed_only_are_averaged(tmp_path: Path) -> None:
    for seed, accuracy in enumerate((0.8, 0.9)):
        parent = trained_run(tmp_path / f"d{seed}", seed=seed, test_acc=accuracy)
        pruned_run(tmp_path / f"p{seed}", parent, seed=seed, acc_dense=accuracy, acc_finetuned=0.5)
    task = only_task(tmp_path)
    assert task.variants == ["rni"]
    (row,) = tables.by_ratio(task).to_dict("records")
    assert row == {"method": "rni", "dense": "85.00 ± 7.07", "0.5": "50.00 ± 0.00"}
    assert [int(row["runs"]) for row in tables.details(task).to_dict("records")] == [2, 2]


@pytest.mark.parametrize(
    ("change", "label"),
    [
        ({"weight": 1e-3}, "rni, reg_weight=0.001"),
        ({"lr": 0.05}, "rni, fine-tuning lr=0.05"),
    ],
)
def test_runs_that_differ_in_more_are_never_averaged(
    tmp_path: Path, change: dict[str, float], label: str
) -> None:
    for number in range(3):
        last = number == 2
        weight = change.get("weight", 1e-4) if last else 1e-4
        parent = trained_run(tmp_path / f"d{number}", weight=weight, seed=number)
        lr = change.get("lr", 0.1) if last else 0.1
        pruned_run(tmp_path / f"p{number}", parent, lr=lr, seed=number)
    task = only_task(tmp_path)
    assert label in task.variants
    pruned = tables.averages(task).xs("0.5", level="ratio")["accuracy"]
    assert sorted(pruned["count"]) == [1, 2]


def test_a_checkpoint_that_is_not_there_tells_runs_apart(tmp_path: Path) -> None:
    pruned_run(tmp_path / "a", tmp_path / "gone", seed=0)
    pruned_run(tmp_path / "b", tmp_path / "other", seed=1)
    assert len(only_task(tmp_path).variants) == 2


def test_runs_that_moved_find_their_dense_network(tmp_path: Path) -> None:
    parent = trained_run(tmp_path / "old" / "dense", weight=1e-3)
    pruned_run(tmp_path / "old" / "small", parent)
    trained_run(tmp_path / "old" / "others", weight=1e-4)
    (tmp_path / "old").rename(tmp_path / "new")
    runs = read([tmp_path / "new"]).table.set_index("run")["variant"]
    assert runs["small"] == runs["dense"] != runs["others"]


def test_one_seed_counts_once(tmp_path: Path) -> None:
    trained_run(tmp_path / "first")
    trained_run(tmp_path / "second")
    found = read([tmp_path])
    assert list(found.table["run"]) == ["first"]
    assert "left out" in problems(found)["second"]


@pytest.mark.parametrize(
    ("summary", "words"),
    [
        ({**TRAIN, "test_acc": 1.5}, "test_acc=1.5 is not allowed"),
        ({**TRAIN, "params": -1}, "params=-1 is not allowed"),
        ({**TRAIN, "macs": True}, "macs=True is not allowed"),
        ({k: v for k, v in TRAIN.items() if k != "arch"}, "arch is missing"),
        ({**PRUNE, "kept": {"bn": 0}}, "kept={'bn': 0} is not allowed"),
        ({**PRUNE, "ratio": "half"}, "ratio=half is not allowed"),
    ],
)
def test_figures_that_cannot_be_are_named(
    tmp_path: Path, summary: dict[str, Any], words: str
) -> None:
    put(tmp_path / "bad", summary)
    trained_run(tmp_path / "good")
    found = read([tmp_path])
    assert list(found.table["run"]) == ["good"]
    assert words in problems(found)["bad"]


def test_runs_that_broke_off_or_failed_are_named(tmp_path: Path) -> None:
    put(tmp_path / "half", None, {"command": "train", "trainer": {"max_epochs": 9}})
    (put(tmp_path / "failed", None, {"command": "train"}) / "failure.json").write_text(
        json.dumps({"error": "no memory\nleft"})
    )
    (put(tmp_path / "torn", TRAIN) / "summary.json").write_text('{"arch": ')
    (put(tmp_path / "odd", TRAIN, {}) / "config.yaml").write_text("[: ]: {")
    put(tmp_path / "not_ours", None, {"some": "settings"})
    found = problems(read([tmp_path]))
    assert "unfinished (no summary.json): 0 of 9 epochs are done" in found["half"]
    assert found["failed"].startswith("failed: no memory")
    assert "summary.json is damaged" in found["torn"]
    assert "config.yaml is damaged" in found["odd"]
    assert "not_ours" not in found


def test_names_are_printable(tmp_path: Path) -> None:
    trained_run(tmp_path / "a\x1b[31mb")
    assert all(name.isprintable() for name in read([tmp_path]).table["run"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_folders_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "shut").mkdir(mode=0)
    assert "cannot be read" in str(problems(read([tmp_path])))


def test_a_csv_says_what_the_directories_say(tmp_path: Path) -> None:
    parent = trained_run(tmp_path / "runs" / "dense", seed=3)
    pruned_run(tmp_path / "runs" / "small", parent, seed=3, target="macs")
    pruned_run(tmp_path / "runs" / "auto", parent, seed=3, ratio="auto")
    trained_run(tmp_path / "runs" / "=1+1", weight=1e-3, method="=x")
    found = read([tmp_path / "runs"])
    (tmp_path / "runs.csv").write_text(csv(found.table))
    again = read([tmp_path / "runs.csv"])
    for task, same in zip(tables.tasks(found.table), tables.tasks(again.table), strict=True):
        assert task.ratios == same.ratios
        assert tables.details(task).equals(tables.details(same)) or "=x" in str(task.variants)
    assert "'=x" in (tmp_path / "runs.csv").read_text()  # no formula for a spreadsheet


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", ",".join(COLUMNS) + "\n" + "x," * 22])
def test_another_csv_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "runs.csv").write_text(text)
    with pytest.raises(ConfigError, match=r"runs\.csv is no file of runs"):
        read([tmp_path / "runs.csv"])


def test_places_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    (tmp_path / "runs.csv").write_text(csv(read([trained_run(tmp_path / "a")]).table))
    with pytest.raises(ConfigError, match="by itself"):
        read([tmp_path / "runs.csv", tmp_path / "a"])
    with pytest.raises(ConfigError, match="neither a directory nor a file"):
        read([tmp_path / "missing"])


def test_settings_are_compared_as_numbers(tmp_path: Path) -> None:
    for seed, value in enumerate((4, 4.0)):
        config = yaml.safe_load("{command: train, distill: {temperature: 0}}")
        config["distill"]["temperature"] = value
        put(tmp_path / str(seed), {**TRAIN, "seed": seed}, config)
    assert only_task(tmp_path).variants == ["rni"]

"""Which runs belong together, their means, and what is said of runs that cannot be used."""

import json
import os
import re
import statistics
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from made_up_runs import (
    PRUNE,
    TRAIN,
    Cells,
    lines,
    only_table,
    pruned_run,
    put,
    report,
    trained_run,
)

from rni_pl.report import grids, plots
from rni_pl.report.collect import collect


def test_means_and_deviations_over_seeds(tmp_path: Path) -> None:
    accuracies = [0.8765, 0.8801, 0.8712]
    for seed, acc in enumerate(accuracies):
        parent = trained_run(tmp_path / "t" / str(seed), seed=seed, test_acc=0.9 + seed / 1000)
        pruned_run(tmp_path / "p" / str(seed), parent, seed=seed, acc_finetuned=acc)
    rows = Cells(report(tmp_path)).rows
    mean, std = statistics.fmean(accuracies), statistics.stdev(accuracies)
    assert ["rni", "90.10 ± 0.10", f"{100 * mean:.2f} ± {100 * std:.2f}"] in rows
    dense, half = lines(tmp_path / "results.csv")
    assert (dense["ratio"], half["ratio"]) == ("dense", "0.5")
    assert (half["runs"], half["seeds"]) == ("3", "0 1 2")
    assert float(half["acc_finetuned_mean"]) == mean
    assert float(half["acc_finetuned_std"]) == std
    assert float(half["params_mean"]) == PRUNE["params_pruned"]
    assert half["params_std"] == "0.0"


def test_one_run_has_no_deviation(tmp_path: Path) -> None:
    trained_run(tmp_path / "t")
    page = report(tmp_path)
    (line,) = lines(tmp_path / "results.csv")
    assert (line["acc_dense_mean"], line["acc_dense_std"]) == ("0.9", "")
    assert ["rni", "dense", "1", "90.00", "–", "–", "269,034", "–", "40,813,184", "–"] in Cells(
        page
    ).rows


def test_runs_that_differ_in_more_than_the_seed_are_not_averaged(tmp_path: Path) -> None:
    for weight in (1e-4, 1e-3):
        parent = trained_run(tmp_path / f"t{weight}", weight)
        for lr in (0.1, 0.01):
            pruned_run(tmp_path / f"p{weight}_{lr}", parent, lr)
    table = only_table(tmp_path)
    assert all(len(row.runs) == 1 for row in table.rows)
    assert {row.variant.label for row in table.rows} == {
        "rni, reg_weight=0.0001",
        "rni, reg_weight=0.001",
        "rni, reg_weight=0.0001, fine-tuning lr=0.1",
        "rni, reg_weight=0.0001, fine-tuning lr=0.01",
        "rni, reg_weight=0.001, fine-tuning lr=0.1",
        "rni, reg_weight=0.001, fine-tuning lr=0.01",
    }


def test_what_has_no_bearing_tells_no_runs_apart(tmp_path: Path) -> None:
    for seed in (0, 1):
        config = {
            "command": "train", "seed": seed, "overrides": [f"seed={seed}"],
            "data": {"batch_size": 64, "seed": seed, "split_seed": seed, "workers": seed},
            "trainer": {"max_epochs": 2, "accelerator": ["cpu", "gpu"][seed]},
        }  # fmt: skip
        put(tmp_path / str(seed), {**TRAIN, "seed": seed}, config)
    (row,) = only_table(tmp_path).rows
    assert (row.variant.label, len(row.runs)) == ("rni", 2)


def test_scopes_are_told_apart(tmp_path: Path) -> None:
    parent = trained_run(tmp_path / "t")
    pruned_run(tmp_path / "a", parent)
    pruned_run(tmp_path / "b", parent, scope="local")
    labels = {row.variant.label for row in only_table(tmp_path).rows}
    assert labels == {"rni", "rni, scope=global", "rni, scope=local"}


def test_runs_that_were_moved_find_their_parents(tmp_path: Path) -> None:
    for weight, acc in ((1e-4, 0.9), (1e-3, 0.8)):
        parent = trained_run(tmp_path / "old" / f"t{weight}", weight, test_acc=acc)
        pruned_run(tmp_path / "old" / f"p{weight}", parent, acc_dense=acc)
    (tmp_path / "old").rename(tmp_path / "new")
    table = only_table(tmp_path / "new")
    assert len(table.variants) == 2
    assert all(table.row(variant, 0.5) for variant in table.variants)


@pytest.mark.parametrize("file", ["", "checkpoints/best.ckpt"])
def test_pruned_runs_of_unknown_parents_are_not_averaged(file: str, tmp_path: Path) -> None:
    for parent in ("rni_weak", "rni_strong"):
        pruned_run(tmp_path / parent, Path("/elsewhere/runs") / parent / file, seed=len(parent))
    labels = [row.variant.label for row in only_table(tmp_path).rows]
    tail = f"/{file}" if file else ""
    assert labels == [f"rni, checkpoint=rni_{kind}{tail}" for kind in ("strong", "weak")]


def test_checkpoint_files_find_their_parents(tmp_path: Path) -> None:
    parent = trained_run(tmp_path / "t")
    pruned_run(tmp_path / "a", parent / "checkpoints" / "best.ckpt")
    pruned_run(tmp_path / "b", parent / "checkpoints" / "last.ckpt")
    labels = [row.variant.label for row in only_table(tmp_path).rows]
    assert labels == ["rni", "rni", "rni, checkpoint=last.ckpt"]


def test_values_that_are_nearly_the_same_are_told_apart(tmp_path: Path) -> None:
    for seed, weight in enumerate([1e-4, 1.00000001e-4]):
        trained_run(tmp_path / str(seed), weight, seed=seed)
    assert len(only_table(tmp_path).rows) == 2


def test_summaries_without_configurations(tmp_path: Path) -> None:
    put(tmp_path / "a", TRAIN)
    put(tmp_path / "b", {**TRAIN, "seed": 1})
    (row,) = only_table(tmp_path).rows
    assert len(row.runs) == 2
    trained_run(tmp_path / "c", seed=2)
    labels = [(row.variant.label, len(row.runs)) for row in only_table(tmp_path).rows]
    assert labels == [("rni", 1), ("rni, config.yaml=missing", 2)]


def test_the_same_seed_twice_is_said(tmp_path: Path) -> None:
    trained_run(tmp_path / "a")
    trained_run(tmp_path / "b")
    assert "has the settings and the seed of a; both count" in report(tmp_path)


def test_a_directory_given_twice_counts_once(tmp_path: Path) -> None:
    trained_run(tmp_path / "runs" / "a")
    assert len(collect([tmp_path, tmp_path / "runs", tmp_path / "runs" / "a"]).runs) == 1


def test_ratio_auto_is_drawn_where_it_cut(tmp_path: Path) -> None:
    parent = trained_run(tmp_path / "t")
    pruned_run(tmp_path / "a", parent, ratio="auto", channels_pruned=36)
    pruned_run(tmp_path / "b", parent, ratio=0.5)
    table = only_table(tmp_path)
    assert table.ratios() == [0.5, "auto"]
    line = plots.points(table, table.variants[0], "acc_finetuned", plots.RATIO)
    assert [place for place, _ in line] == [0, 0.25, 0.5]
    line = plots.points(table, table.variants[0], "acc_finetuned", plots.MACS)
    assert [place for place, _ in line] == [20406593, 20406593, 40813184]


def test_long_names_are_wrapped_in_the_legend(tmp_path: Path) -> None:
    method = "a method whose name is far longer than any line below a plot can hold at once"
    parent = trained_run(tmp_path / "t", method=method)
    pruned_run(tmp_path / "a", parent, method=method)
    table = only_table(tmp_path)
    for plot in plots.curves(table, plots.method_colours([table])):
        texts = [text.strip() for text in re.findall(r">([^<>]+)</text>", plot.svg)]
        assert method.split()[0] in " ".join(texts)
        assert max(map(len, texts)) <= plots.LINE


def test_latency_where_measured(tmp_path: Path) -> None:
    for seed, speedup in enumerate([1.8, 2.0, None]):
        latency = {"engine": "eager", "batch": 64, "speedup": speedup, "worst": float("inf")}
        timed = {"latency": latency} if speedup else {}
        parent = trained_run(tmp_path / f"t{seed}", seed=seed)
        pruned_run(tmp_path / f"p{seed}", parent, seed=seed, **timed)
    pruned_run(tmp_path / "never", parent, ratio=0.9)
    rows = Cells(report(tmp_path)).rows
    header = rows.index(["method", "ratio", "engine", "batch", "speedup", "worst"])
    assert rows[header + 1] == ["rni", "0.5", "eager", "64", "1.9 ± 0.14", "inf"]
    assert rows[header + 2][0] != "rni"
    line = lines(tmp_path / "results.csv")[1]
    assert float(line["latency.speedup_mean"]) == pytest.approx(1.9)
    assert lines(tmp_path / "runs.csv")[1]["latency.engine"] == "eager"


def test_methods_in_order_and_the_best_of_each_ratio(tmp_path: Path) -> None:
    for method, acc in (("ucs", 0.7), ("l1", 0.8), ("polarization", 0.85), ("rni", 0.9)):
        pruned_run(tmp_path / method, Path("t"), method=method, acc_finetuned=acc)
    grid = grids.by_ratio(only_table(tmp_path))
    assert [row[0] for row in grid.rows] == ["rni", "l1", "ucs", "polarization"]
    assert (0, 2) in grid.best
    assert not {(1, 2), (2, 2), (3, 2)} & grid.best
    assert "| rni | **90.00** | **90.00** |" in grids.markdown(grid)


def test_penalties_stand_in_the_order_of_their_size(tmp_path: Path) -> None:
    for weight in (2e-4, 1e-5, 1e-3):
        trained_run(tmp_path / str(weight), weight)
    labels = [variant.label for variant in only_table(tmp_path).variants]
    assert labels == [f"rni, reg_weight={weight}" for weight in ("1e-05", "0.0002", "0.001")]


def test_each_method_has_its_place_and_its_colour(tmp_path: Path) -> None:
    ours = {file.stem for file in (ROOT / "conf" / "method").glob("*.yaml")}
    for method in (*ours, "another"):
        pruned_run(tmp_path / method, Path("t"), method=method)
    table = only_table(tmp_path)
    methods = [row.variant.method for row in table.rows]
    assert methods == ["rni", "l1", "ucs", "polarization", "another"]
    colours = plots.method_colours([table])
    assert len(set(colours.values())) == len(methods)
    assert plots.method_colours([]) == {method: colours[method] for method in ours}


BROKEN = {
    "cut off": ('{"dataset": "dig', "summary.json is damaged"),
    "no mapping": ("[1, 2]", "summary.json is damaged"),
    "deep": ("[" * 100_000, "summary.json is damaged"),
    "bytes": ("\ud800", "summary.json is damaged"),
    "missing": (json.dumps({"dataset": "digits"}), "arch is missing"),
    "text": (json.dumps({**TRAIN, "params": "many"}), "params=many is not a whole number"),
    "nan": (json.dumps({**TRAIN, "test_acc": float("nan")}), "test_acc=nan is not a number in [0"),
    "percent": (json.dumps({**PRUNE, "acc_pruned": 41.0}), "acc_pruned=41.0 is not a number"),
    "zero": (json.dumps({**PRUNE, "macs_dense": 0}), "macs_dense=0 is not a whole number > 0"),
    "kept": (json.dumps({**PRUNE, "kept": {"bn": "all"}}), "is not a number of channels"),
    "seed": (json.dumps({**TRAIN, "seed": "\ud800"}), "is not a whole number"),
    "empty": (json.dumps({**PRUNE, "kept": {}}), "is not a number of channels"),
    "latency": (json.dumps({**TRAIN, "latency": 3}), "latency=3 is not a mapping"),
}


@pytest.mark.parametrize("damage", BROKEN)
def test_a_broken_summary_is_named(damage: str, tmp_path: Path) -> None:
    text, reason = BROKEN[damage]
    trained_run(tmp_path / "sound")
    put(tmp_path / "broken_one", None)
    (tmp_path / "broken_one" / "summary.json").write_bytes(text.encode(errors="surrogatepass"))
    found = collect([tmp_path])
    assert [run.name for run in found.runs] == ["sound"]
    (problem,) = found.problems
    assert problem.name == "broken_one"
    assert reason in problem.reason
    assert "broken_one" in report(tmp_path)


@pytest.mark.parametrize(
    "text", ["a: [", "just words", "a: !!python/name:os.system", "&a {b: *a}", ""]
)
def test_a_broken_configuration_is_named(text: str, tmp_path: Path) -> None:
    trained_run(tmp_path / "sound")
    put(tmp_path / "broken_one", TRAIN)
    (tmp_path / "broken_one" / "config.yaml").write_text(text)
    (problem,) = collect([tmp_path]).problems
    assert problem.name == "broken_one"
    assert problem.reason.startswith("config.yaml is damaged")


def test_what_cannot_be_shown_is_not_fatal(tmp_path: Path) -> None:
    run = trained_run(
        tmp_path / os.fsdecode(b"t\xff\x01"), latency={"a\ud800": "b\ud800\n"}, note="\ud800"
    )
    (run / "config.yaml").write_text('command: train\nmethod: {a: "x\\0y"}\n')
    other = trained_run(tmp_path / "other", method="r\x07ni")
    config = {"command": "train", "method": {"a": "z"}}
    failed = put(tmp_path / "failed", None, config)
    (failed / "failure.json").write_text('{"error": "\\ud800"}')
    put(tmp_path / "third", {**TRAIN, "seed": 1}, config)
    page = report(tmp_path)
    for shown in ("t\ufffd\ufffd", "rni, a=x\ufffdy", "failed: \ufffd", "is not a printable text"):
        assert shown in page
    assert other.name in page


def test_unfinished_runs_of_every_kind(tmp_path: Path) -> None:
    config = {"command": "train", "trainer": {"max_epochs": 9}}
    put(tmp_path / "begun", None, config)
    for name, contents in (("halfway", {"epoch": 3}), ("torn", [])):
        put(tmp_path / name / "checkpoints", None)
        torch.save(contents, tmp_path / name / "checkpoints" / "last.ckpt")
    put(tmp_path / "strange", None, config)
    (tmp_path / "strange" / "failure.json").write_text("[]")
    put(tmp_path / "of_something_else", None, {"model": "bert"})
    reasons = {problem.name: problem.reason for problem in collect([tmp_path]).problems}
    assert reasons.keys() == {"begun", "halfway", "torn", "strange"}
    assert "0 of 9 epochs are done" in reasons["begun"]
    assert "4 of an unknown number epochs" in reasons["halfway"]
    assert "last.ckpt is damaged" in reasons["torn"]
    assert "failure.json is damaged" in reasons["strange"]


def test_only_broken_runs_still_make_a_page(tmp_path: Path) -> None:
    put(tmp_path / "begun", None, {"command": "train"})
    assert "begun" in report(tmp_path)

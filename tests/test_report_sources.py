"""Which runs the report takes to belong together, and which not."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from made_up_runs import PRUNE, TRAIN, only_table, pruned_run, put, trained_run
from torch import nn

from rni_pl.classifier import Classifier
from rni_pl.report import grids
from rni_pl.report.__main__ import main
from rni_pl.report.collect import collect
from rni_pl.report.settings import parent_of
from rni_pl.runs.checkpoint import read_scale_sizes
from rni_pl.runs.spec import ModelSpec


def test_a_run_that_was_replaced_is_no_parent(tmp_path: Path) -> None:
    dense = trained_run(tmp_path / "dense")
    pruned_run(tmp_path / "half", dense)
    for accuracy, known in ((0.9, True), (0.9011, True), (0.91, False)):  # measured elsewhere
        summary = {**TRAIN, "test_acc": accuracy}
        (dense / "summary.json").write_text(json.dumps(summary))
        found = collect([tmp_path]).runs
        pruned = next(run for run in found if run.is_pruned)
        assert (parent_of(pruned, found) is not None) is known


def test_a_run_from_another_epoch_has_its_parent(tmp_path: Path) -> None:
    dense = trained_run(tmp_path / "dense")
    pruned_run(tmp_path / "half", dense / "checkpoints" / "last.ckpt", acc_dense=0.7)
    found = collect([tmp_path]).runs
    pruned = next(run for run in found if run.is_pruned)
    assert parent_of(pruned, found) is not None


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for place in ("one/run", "two/run", "two/other"):
        trained_run(tmp_path / place)
    names = [run.name for run in collect([tmp_path / "one", tmp_path / "two"]).runs]
    assert names == [f"{tmp_path}/one/run", "other", f"{tmp_path}/two/run"]


def test_summaries_of_other_budgets_are_not_averaged(tmp_path: Path) -> None:
    put(tmp_path / "a", TRAIN)
    put(tmp_path / "b", {**TRAIN, "epochs": 160, "test_acc": 0.95, "seed": 1})
    assert [len(row.runs) for row in only_table(tmp_path).rows] == [1, 1]


GIVEN = {
    "width_mult=0.25": {"arch": {"width_mult": 0.25}},
    "callbacks=[{'_target_': 'my.Mixup'}]": {"trainer": {"callbacks": [{"_target_": "my.Mixup"}]}},
}


@pytest.mark.parametrize("label", GIVEN)
def test_what_only_some_runs_were_given_tells_them_apart(label: str, tmp_path: Path) -> None:
    for seed, more in enumerate([{}, {}, GIVEN[label]]):
        config = {"command": "train", "seed": seed, **more}
        parent = put(tmp_path / f"t{seed}", {**TRAIN, "seed": seed}, config)
        pruned_run(tmp_path / f"p{seed}", parent, seed=seed)
    rows = [(row.variant.label, len(row.runs)) for row in only_table(tmp_path).rows]
    assert rows == [("rni", 2), ("rni", 2), (f"rni, {label}", 1), (f"rni, {label}", 1)]


def test_what_is_not_known_of_a_run_tells_none_apart(tmp_path: Path) -> None:
    put(tmp_path / "a", TRAIN, {"command": "train", "arch": {"width_mult": 0.25}})
    put(tmp_path / "b", TRAIN)
    labels = [row.variant.label for row in only_table(tmp_path).rows]
    assert labels == ["rni", "rni, config.yaml=missing"]


def test_layers_of_two_widths_have_no_dense_column(tmp_path: Path) -> None:
    dense = trained_run(tmp_path / "dense")
    pruned_run(tmp_path / "half", dense)
    assert grids.kept_by_layer(only_table(tmp_path)).header[:2] == ["layer", "dense"]
    wider = {name: 2 * width for name, width in PRUNE["widths"].items()}
    pruned_run(tmp_path / "quarter", dense, ratio=0.75, widths=wider)
    grid = grids.kept_by_layer(only_table(tmp_path))
    assert grid.header[0] == "layer"
    assert "dense" not in grid.header


def test_what_waits_in_a_hidden_directory_is_no_run(tmp_path: Path) -> None:
    trained_run(tmp_path / "dense")
    trained_run(tmp_path / "dense" / ".replaced")
    assert [run.name for run in collect([tmp_path]).runs] == ["dense"]


def test_links_to_runs_are_followed(tmp_path: Path) -> None:
    trained_run(tmp_path / "elsewhere" / "sweep" / "0")
    trained_run(tmp_path / "elsewhere" / "single")
    runs = trained_run(tmp_path / "runs" / "own").parent
    for name, target in {
        "all": tmp_path / "elsewhere" / "sweep",
        "one": tmp_path / "elsewhere" / "single",
        "again": tmp_path / "elsewhere" / "single",
        "latest": runs / "own",
        "loop": runs,
        "gone": tmp_path / "gone",
        ".hidden": tmp_path / "elsewhere",
    }.items():
        (runs / name).symlink_to(target)
    found = collect([runs])
    assert [run.name for run in found.runs] == ["own", "again", "all/0"]
    assert not found.problems


def test_batchnorm_of_another_kind_has_no_importances(tmp_path: Path) -> None:
    state = {
        "model.bn.weight": torch.zeros(4), "model.bn.running_mean": torch.zeros(4),
        "model.head.weight": torch.ones(2), "model.head.bias": torch.zeros(2),
        "model.head.running_mean": torch.zeros(2),
    }  # fmt: skip
    for norm, known in (("sigbn", {"bn": [0.5] * 4}), ("bn", {"bn": [0.0] * 4, "head": [1.0] * 2})):
        spec = {"hyper_parameters": {"spec": {"norm": norm}}, "state_dict": state}
        torch.save(spec, tmp_path / "x.ckpt")
        found = read_scale_sizes(tmp_path / "x.ckpt")
        assert {name: values.tolist() for name, values in found.items()} == known


def test_importances_are_of_the_layers_whose_scales_rank(tmp_path: Path) -> None:
    odd = nn.InstanceNorm2d(4, affine=True, track_running_stats=True)  # has the same tensors
    layers = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), odd
    spec = ModelSpec(arch={}, num_classes=4).to_dict()
    classifier = Classifier(spec, module=nn.Sequential(*layers))
    contents = {"hyper_parameters": {"spec": spec}, "state_dict": classifier.state_dict()}
    classifier.on_save_checkpoint(contents)
    torch.save(contents, tmp_path / "x.ckpt")
    assert read_scale_sizes(tmp_path / "x.ckpt").keys() == {"1"}


def test_what_cannot_be_read_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = trained_run(tmp_path / "runs" / "t")
    (run / "importances.json").write_text("[")
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- table modes -->\n<!-- end -->\n\n<!-- figure importances -->\n<!-- end -->\n"
    )
    for more in ([], ["--output", str(tmp_path)]):
        main([str(tmp_path / "runs"), "--fill", str(page), *more])
        said = [line for line in capsys.readouterr().err.splitlines() if "no histogram" in line]
        assert len(said) == 1


APART = {
    "data.root": ["/disk/data/cats", "/disk/data/flowers", None],
    "checkpoint": ["/disk/sweepA/0", "/disk/sweepB/0", "/disk/a/sweepB/1", "/disk/c/sweepB/1"],
    "checkpoint of a file": [f"/disk/{name}/0/checkpoints/last.ckpt" for name in "ab"],
    "init": ["/disk/one/weights.th", "/disk/two/weights.th"],
}


@pytest.mark.parametrize("setting", APART)
def test_what_is_stored_of_runs_tells_them_apart_as_before(setting: str, tmp_path: Path) -> None:
    key, values = setting.split()[0], APART[setting]
    for seed, value in enumerate([*values, values[0]]):
        config: dict = {"command": "train", "seed": seed}
        config |= {"data": {"root": value}} if key == "data.root" else {key: value}
        summary = PRUNE if key == "checkpoint" else TRAIN
        put(tmp_path / "runs" / str(seed), {**summary, "seed": seed}, config)
    main([str(tmp_path / "runs"), "--store", str(tmp_path / "stored")])
    before, after = (
        [[run.summary["seed"] for run in row.runs] for row in only_table(tmp_path / name).rows]
        for name in ("runs", "stored")
    )
    assert sorted(map(sorted, before)) == sorted(map(sorted, after))
    assert len(after) == len(values)
    stored = [file.read_text() for file in (tmp_path / "stored").rglob("config.yaml")]
    assert not any("disk" in text for text in stored)


def test_of_paths_no_more_is_stored_than_tells_runs_apart(tmp_path: Path) -> None:
    for name in ("cats", "dogs"):
        data = {"name": name, "root": f"/disk/{name}"}
        config = {"command": "prune", "checkpoint": f"/disk/{name}/0", "data": data}
        put(tmp_path / "runs" / name, {**PRUNE, "dataset": name}, config)
    main([str(tmp_path / "runs"), "--store", str(tmp_path / "stored")])
    for name in ("cats", "dogs"):
        stored = yaml.safe_load((tmp_path / "stored" / name / "config.yaml").read_text())
        assert stored == {"command": "prune", "checkpoint": "0", "data": {"name": name}}

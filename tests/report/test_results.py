"""docs/results.md says what docs/results.csv holds."""

import re

import pytest
from conftest import ROOT

from rni_pl.report import tables
from rni_pl.report.runs import read
from rni_pl.report.tables import Task

TASKS = {task.arch: task for task in tables.tasks(read([ROOT / "docs" / "results.csv"]).table)}
SHOWN = {
    "vgg16": ["rni", "rni, reg_weight=0.02", "ucs", "l1", "l1, reg_weight=0.002", "polarization"],
    "resnet56": [
        "rni", "rni, reg_weight=0.002", "ucs", "l1", "l1, reg_weight=0.0002", "polarization"
    ],
}  # fmt: skip
# The reference implementation on the same images, RNI with seed 0: share removed -> accuracy in %.
REFERENCE = {
    ("resnet56", "rni"): {"0.5": 81.06, "0.9": 75.65},
    ("vgg16", "rni, max_epochs=4, fine-tuning max_epochs=2"): {"0.5": 75.90, "0.9": 62.77},
}


@pytest.mark.parametrize("arch", SHOWN)
def test_the_tables_of_the_page_are_those_of_the_runs(arch: str) -> None:
    task = TASKS[arch]
    own = Task(task.dataset, arch, task.runs[task.runs["variant"].isin(SHOWN[arch])])
    page = (ROOT / "docs" / "results.md").read_text()
    assert tables.markdown(tables.by_ratio_with_macs(own)) in page


def test_the_readmes_table_is_that_of_the_runs() -> None:
    labels = {
        "RNI": "rni", "RNI, 20 times the weight": "rni, reg_weight=0.02", "UCS": "ucs", "L1": "l1",
        "L1, 20 times the weight": "l1, reg_weight=0.002",
    }  # fmt: skip
    table = tables.averages(TASKS["vgg16"])
    rows = re.findall(r"^\| (.+?) \| (\S+) \| (\S+) \| (\S+) \|$", readme(), re.MULTILINE)
    shown = {label: [cell.strip("*") for cell in cells] for label, *cells in rows}
    for label, variant in labels.items():
        places = [
            ("dense", "acc_dense"),
            ("0.95 of MACs", "accuracy"),
            ("0.98 of MACs", "accuracy"),
        ]
        means = [table.loc[(variant, ratio), (figure, "mean")] for ratio, figure in places]
        assert shown[label] == [f"{100 * mean:.2f}" for mean in means]


def readme() -> str:
    return (ROOT / "README.md").read_text()


@pytest.mark.parametrize("cell", REFERENCE, ids=lambda cell: cell[0])
def test_plain_runs_are_at_most_half_a_point_below_the_reference(cell: tuple[str, str]) -> None:
    runs = TASKS[cell[0]].runs
    plain = runs[(runs["variant"] == cell[1]) & (runs["seed"] == 0)].set_index("ratio")
    for ratio, accuracy in REFERENCE[cell].items():
        assert 100 * plain.loc[ratio, "accuracy"] > accuracy - 0.5


@pytest.mark.parametrize(("cell", "lead"), [(cell, 1.5) for cell in REFERENCE], ids=str)
def test_the_best_switch_beats_the_reference(cell: tuple[str, str], lead: float) -> None:
    arch, variant = cell
    runs = TASKS[arch].runs
    epochs = runs.loc[runs["variant"] == variant, "epochs"].dropna().unique()
    same = runs["variant"].str.startswith("rni") & runs["variant"].str.contains("one", regex=False)
    alike = runs[same & runs["epochs"].isin(epochs) & ~runs["variant"].str.contains("reg_weight")]
    best = alike.loc[alike["ratio"] == "0.9", "accuracy"].max()
    assert 100 * best > REFERENCE[cell]["0.9"] + lead

"""The notebook runs from top to bottom, on fewer batches; it is kept with its outputs."""

import re
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient

FILE = ROOT / "examples/results.ipynb"
FEW = '"trainer.limit_train_batches=3", "data.eval_batch_size=100", "trainer.'


def cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_notebook_is_kept_with_its_outputs() -> None:
    notebook = nbformat.read(FILE, as_version=4)
    nbformat.validate(notebook)
    numbers = [cell.execution_count for cell in cells(notebook)]
    assert numbers == list(range(1, len(numbers) + 1)), "it was not run from top to bottom"
    shown = [output.get("data", {}) for cell in cells(notebook) for output in cell.outputs]
    assert sum("image/png" in data for data in shown) == 4
    assert sum("text/markdown" in data for data in shown) == 1
    text = FILE.read_text()
    assert not re.search(r'"/(home|root|tmp|work|Users)/', text), "a path of some machine"


@pytest.mark.slow
def test_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(FILE, as_version=4)
    (parameters,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    source = re.sub(r"(epochs, finetuning_epochs) = \d+, \d+", r"\1 = 2, 1", parameters.source)
    parameters.source = source.replace('"trainer.', FEW, 1)
    assert parameters.source.count("limit_train_batches") == 1
    assert "= 2, 1" in parameters.source
    for cell in cells(notebook):
        cell.outputs, cell.execution_count = [], None
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=240, resources=resources).execute()
    shown = [output.get("data", {}) for cell in cells(notebook) for output in cell.outputs]
    assert sum("image/png" in data for data in shown) == 4
    (table,) = (data["text/markdown"] for data in shown if "text/markdown" in data)
    rows = [line.split(" | ") for line in table.splitlines()[2:]]
    assert [row[:2] for row in rows] == [
        [f"| {method}", ratio] for method in ("rni", "l1", "ucs") for ratio in ("0.5", "0.9")
    ]
    assert shown[-1]["text/plain"] == "torch.Size([2, 10])"
    assert not list(tmp_path.iterdir())

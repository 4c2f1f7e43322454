"""What an export checks: where it may write, and what was written, by the size of the logits."""

from pathlib import Path

import pytest
import torch
from test_export import as_trained, save, spec_of
from torch import nn

from rni_pl.errors import ExportError
from rni_pl.export import exporting
from rni_pl.export.exporting import check_output, export
from rni_pl.export.folding import fold
from rni_pl.runs.spec import build

CHAIN = "test_folding.Chain"


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A checkpoint whose logits are so large that float32 rounds them by more than 1e-4."""
    spec = spec_of(CHAIN)
    model = as_trained(build(spec))
    nn.init.normal_(model.get_submodule("fc").weight, std=1e4)
    return save(model, spec, tmp_path / "large.ckpt")


def test_large_logits_may_be_rounded(large: Path, tmp_path: Path) -> None:
    assert export(large, tmp_path / "model.pt2", allow=[CHAIN]) > exporting.TOLERANCE
    assert (tmp_path / "model.pt2").is_file()


@pytest.mark.parametrize("wrong", [100.0, torch.inf])
def test_large_logits_may_not_be_others(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: float
) -> None:
    def other_bias(model: nn.Module, example: torch.Tensor) -> nn.Module:
        model = fold(model, example)
        model.get_submodule("fc").bias.data[3] += wrong
        return model

    monkeypatch.setattr(exporting, "fold", other_bias)
    with pytest.raises(ExportError, match="would differ"):
        export(large, tmp_path / "model.pt2", allow=[CHAIN])
    assert not (tmp_path / "model.pt2").exists()


def test_a_directory_is_no_file_to_write(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").mkdir()
    with pytest.raises(ExportError, match=r"model\.onnx cannot be written: it is a directory"):
        check_output(tmp_path / "model.onnx")

"""The examples run, cut short; what they reach at length is on docs/any-task.md."""

from pathlib import Path

import pytest
from conftest import ROOT, run_python

FEW = ("--epochs", "1", "--images", "32")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "figure", "more"),
    [
        ("segmentation", "IoU", ("--picture", "p.png")),
        ("detection", "mAP50", ("--picture", "p.png")),
        ("yolo", "mAP50", ()),
    ],
)
def test_an_example_runs(name: str, figure: str, more: tuple[str, ...], tmp_path: Path) -> None:
    if name == "yolo":
        pytest.importorskip("ultralytics")  # AGPL-3.0: never installed by CI
    script = str(ROOT / f"examples/{name}.py")
    done = run_python(script, *FEW, *more, cwd=tmp_path, YOLO_OFFLINE="true")
    assert done.status == 0, done.err
    assert f"{figure} " in done.out.splitlines()[-1]
    assert "channels of" in done.out
    if "--picture" in more:
        assert (tmp_path / "p.png").stat().st_size > 1000

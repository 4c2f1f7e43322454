"""The README's main job on digits, in full: the commands are read from the README."""

import json
import re
import shlex
from pathlib import Path

import pytest
from conftest import ROOT, run_python


def main_job() -> list[list[str]]:
    """The `train.py` and `prune.py` lines of the README's first code block."""
    block = re.search(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block is not None
    joined = block.group(1).replace("\\\n", " ")
    parts = re.split(r"&&|\n", joined)
    return [
        shlex.split(part)[1:] for part in parts if re.match(r"\s*python (train|prune)\.py", part)
    ]


@pytest.mark.slow
def test_main_job(tmp_path: Path) -> None:
    train, prune = main_job()
    for script, *arguments in (train, prune):
        done = run_python(str(ROOT / script), *arguments, cwd=tmp_path)
        assert done.status == 0, done.err
    (dense,) = tmp_path.glob("runs/digits/summary.json")
    assert json.loads(dense.read_text())["test_acc"] >= 0.95
    (small,) = tmp_path.glob("runs/digits_half/summary.json")
    found = json.loads(small.read_text())
    assert found["acc_finetuned"] >= 0.93
    assert found["channels_pruned"] == found["channels_dense"] // 2
    assert f"{found['acc_finetuned']:.2%}" in done.out

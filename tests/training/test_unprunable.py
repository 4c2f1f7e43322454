"""What could not be pruned is said before it is trained for hours."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import SHORT

NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x):
        x = self.bn(self.conv(x))
        return self.fc(FEATURES.mean((2, 3)))
"""


@pytest.mark.parametrize(
    ("features", "why"),
    [
        ("(x if x.mean() > 0 else -x)", "bn: feeds mean (a_net.py:"),
        ("(x / self.conv.out_channels)", "bn: feeds div (a_net.py:"),
        ("x", ""),
    ],
    ids=["by value", "by size", "sound"],
)
def test_what_could_not_be_pruned_is_said_before_training(
    command: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    recwarn: pytest.WarningsRecorder,
    features: str,
    why: str,
) -> None:
    (tmp_path / "a_net.py").write_text(NET.replace("FEATURES", features))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "a_net", raising=False)
    assert (
        command("train", "arch=custom", "arch._target_=a_net.Net", "data=digits", *SHORT).status
        == 0
    )
    said = [str(one.message) for one in recwarn if "not pruned as it is: " in str(one.message)]
    assert len(said) == bool(why)
    assert all(why in one for one in said)

"""Starting from trained weights: names, shapes, and the function carried over into SigBN."""

import contextlib
import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import SHORT
from made_up_runs import Cells, report
from masking import difference, randomise
from torch import nn

import rni_pl
from rni_pl import models
from rni_pl.errors import CheckpointError
from rni_pl.norm import norm_kind
from rni_pl.report.runs import read
from rni_pl.training.warmstart import load_state, read_state


def saved(tmp_path: Path, state: dict, wrap: str = "", prefix: str = "") -> Path:
    state = OrderedDict((f"{prefix}{key}", value) for key, value in state.items())
    path = tmp_path / "weights.th"
    torch.save({wrap: state, "best_prec1": 91.7} if wrap else state, path)
    return path


@pytest.mark.parametrize("wrap", ["", "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module._orig_mod.", "_orig_mod."])
@pytest.mark.parametrize("head", ["fc", "linear"])
def test_names_of_others(tmp_path: Path, wrap: str, prefix: str, head: str) -> None:
    trained = randomise(models.resnet20())
    state = {key.replace("fc.", f"{head}."): value for key, value in trained.state_dict().items()}
    model = models.resnet20()
    path = saved(tmp_path, state, wrap, prefix)
    load_state(model, read_state(path), path)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.eval()(x), trained.eval()(x))


def test_old_files_without_batch_counters(tmp_path: Path) -> None:
    state = {k: v for k, v in models.resnet20().state_dict().items() if "num_batches" not in k}
    load_state(models.resnet20(), read_state(saved(tmp_path, state)), "x")


@pytest.mark.parametrize("fault", ["missing", "foreign", "other shape", "other layer", "code"])
def test_what_does_not_fit_is_refused(tmp_path: Path, fault: str) -> None:
    state = dict(models.resnet20(num_classes=7 if fault == "other shape" else 10).state_dict())
    path = saved(tmp_path, state)
    if fault == "missing":
        path.unlink()
    elif fault == "foreign":
        torch.save({"epoch": 3}, path)
    elif fault == "other layer":
        state["layer9.weight"] = state.pop("layer3.0.conv1.weight")
        path = saved(tmp_path, state)
    elif fault == "code":
        torch.save(nn.Linear(2, 2), path)
    with pytest.raises(CheckpointError, match="init="):
        load_state(models.resnet20(), read_state(path), path)


@pytest.mark.parametrize("method", ["rni", "l1"])
def test_init_starts_training_there(command: Callable, tmp_path: Path, method: str) -> None:
    trained = randomise(models.resnet20()).eval()
    path = saved(tmp_path, trained.state_dict(), wrap="state_dict", prefix="module.")
    frozen = ("optimizer.lr=1e-30", "optimizer.weight_decay=0", "trainer.limit_train_batches=1")
    with (
        pytest.warns(UserWarning, match="688 BatchNorm channels")
        if method == "rni"
        else contextlib.nullcontext()
    ):
        finished = command(
            "train", "data=digits", "arch=resnet20", f"method={method}", f"init={path}", *SHORT,
            *frozen, "hydra.run.dir=run",
        )  # fmt: skip
    assert finished.status == 0, finished.err
    started = rni_pl.load_model("run")
    last = started.layer3[2].conv2.weight / trained.layer3[2].conv2.weight
    assert last.isfinite().all()
    assert last[0, 0].std() < 1e-5
    assert norm_kind(started) == ("sigbn" if method == "rni" else "bn")


MY_TRAINED = """
import torch
from rni_pl.models import resnet20

def net(weights, num_classes):
    model = resnet20(num_classes=num_classes)
    model.load_state_dict(torch.load(weights))
    return model
"""


@pytest.mark.parametrize("method", ["rni", "l1"])
def test_weights_that_the_builder_brings_are_carried_over(
    command: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    trained = randomise(models.resnet20()).eval()
    path = saved(tmp_path, trained.state_dict())
    (tmp_path / "my_trained.py").write_text(MY_TRAINED)
    monkeypatch.syspath_prepend(tmp_path)
    said = r"arch\.weights: 688 BatchNorm channels became SigBN"
    with pytest.warns(UserWarning, match=said) if method == "rni" else contextlib.nullcontext():
        finished = command(
            "train", "data=digits", "arch=custom", "arch._target_=my_trained.net",
            f"+arch.weights={path}", f"method={method}", *SHORT, "trainer.max_epochs=0",
            "hydra.run.dir=run",
        )  # fmt: skip
    assert finished.status == 0, finished.err
    started = rni_pl.load_model("run", allow=["my_trained.net"], model=models.resnet20())
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert difference(started(x), trained(x)) < 1e-4


MY_ODD = """
from torch import nn
from rni_pl.models import resnet20

class Doubled(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)

def doubled(weights, num_classes):
    model = resnet20(num_classes=num_classes)
    model.bn1 = Doubled(16)
    return model

def sigmoid(weights, num_classes):
    return resnet20(num_classes=num_classes, norm="sigbn")
"""


@pytest.mark.parametrize(
    ("builder", "method", "words"),
    [
        ("doubled", "rni", "arch=doubled: Doubled does more than BatchNorm"),
        ("sigmoid", "l1", "method=l1 is for BatchNorm, arch=sigmoid brings SigBN"),
    ],
)
def test_weights_of_a_builder_that_does_not_fit_the_method(
    command: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, builder: str, method: str,
    words: str,
) -> None:  # fmt: skip
    (tmp_path / "my_odd.py").write_text(MY_ODD)
    monkeypatch.syspath_prepend(tmp_path)
    finished = command(
        "train", "data=digits", "arch=custom", f"arch._target_=my_odd.{builder}",
        "+arch.weights=any", f"method={method}", *SHORT, "trainer.max_epochs=0",
    )  # fmt: skip
    assert (finished.status, words in finished.err) == (2, True), finished.err


def test_init_takes_networks_that_have_sigbn(command: Callable, trained: Path) -> None:
    start = (
        "train",
        "data=digits",
        "arch=resnet20",
        f"init={trained}/checkpoints/best.ckpt",
        *SHORT,
    )
    frozen = ("optimizer.lr=1e-30", "trainer.limit_train_batches=1", "hydra.run.dir=run")
    finished = command(*start, "method=rni", *frozen)
    assert finished.status == 0, finished.err
    before, after = rni_pl.load_model(trained), rni_pl.load_model("run")
    for name, weight in before.named_parameters():
        assert torch.equal(weight, after.get_parameter(name)), name
    assert "has SigBN scales, and method=l1 BatchNorm's" in command(*start, "method=l1").err


def test_nothing_is_trained_in_no_time_and_reported(
    command: Callable,
) -> None:
    none = (*SHORT, "trainer.max_epochs=0")
    start = ("arch=resnet20", "data=digits", "hydra.run.dir=runs/start")
    assert command("train", *start, *none).status == 0
    small = ("checkpoint=runs/start", "hydra.run.dir=runs/small")
    assert command("prune", *small, *none).status == 0
    for name in ("start", "small"):
        found = json.loads(Path(f"runs/{name}/summary.json").read_text())
        assert (found["best_epoch"], found["epochs"]) == (None, 0)
        assert 0 <= found["seconds"] < 60
    assert read([Path("runs")]).problems == []
    assert ["small", "digits", "resnet20", "rni"] in [
        row[:4] for row in Cells(report(Path("runs"))).rows
    ]

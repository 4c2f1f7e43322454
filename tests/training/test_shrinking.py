"""Training that shrinks the network: resumed, loaded, pruned on, and what the figures are of."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from left_by_runs import assert_same_end, stop_after, summary

import rni_pl
from rni_pl import load_model
from rni_pl.errors import PruningError
from rni_pl.norm import scaled_norms
from rni_pl.training.since_birth import remaining

STRONG = (
    "arch=resnet20", "data=digits", "data.batch_size=16", "trainer.limit_train_batches=8",
    "trainer.enable_model_summary=false", "trainer.max_epochs=4", "method.reg_weight=0.001",
    "optimizer.sigbn_lr_factor=100", "trainer.precision=32-true",
)  # fmt: skip
SHRINK = ("shrink.every=1", "shrink.below=0.45")


@pytest.fixture(scope="module")
def shrunk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from conftest import run_command

    run_dir = tmp_path_factory.mktemp("shrunk")
    assert run_command("train", *STRONG, *SHRINK, f"hydra.run.dir={run_dir}") == 0
    return run_dir


def test_it_is_smaller_and_says_so(shrunk: Path) -> None:
    found = summary(shrunk)
    assert found["macs_by_epoch"][0] == found["macs_born"]
    assert found["macs_by_epoch"] == sorted(found["macs_by_epoch"], reverse=True)
    assert found["macs_by_epoch"][-1] < 0.9 * found["macs_born"]
    assert found["macs"] == found["macs_by_epoch"][found["best_epoch"]]
    for name in ("best", "last"):
        model = load_model(shrunk / f"checkpoints/{name}.ckpt")
        assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    widths = {name: norm.num_features for name, norm in scaled_norms(model)}
    assert widths["layer1.0.bn1"] < 16 or widths["layer3.0.bn1"] < 64


def test_it_goes_on_bit_for_bit(shrunk: Path, command: Callable) -> None:
    for epochs in (1, 2, 3):
        run = Path(f"parts{epochs}")
        with pytest.MonkeyPatch.context() as patch:
            stop_after(patch, epochs)
            done = command("train", *STRONG, *SHRINK, f"hydra.run.dir={run}")
        assert "interrupted" in done.err
        done = command("train", f"resume={run}")
        assert done.status == 0, done.err
        assert_same_end(run, shrunk, killed=True)
        assert summary(run)["macs_by_epoch"] == summary(shrunk)["macs_by_epoch"]


FEW = ("trainer.max_epochs=1", "trainer.limit_train_batches=3", "data.batch_size=16",
       "trainer.enable_model_summary=false")  # fmt: skip


@pytest.mark.parametrize(
    "settings",
    [
        ("prune.ratio=0.9",), ("prune.ratio=0.9", "prune.scope=local"),
        ("prune.ratio=0.9", "prune.coupled=true"), ("prune.ratio=0.8", "prune.target=params"),
        ("prune.ratio=0.8", "prune.target=macs"),
    ],
    ids=str,
)  # fmt: skip
def test_a_ratio_is_a_share_of_what_it_began_with(
    settings: tuple[str, ...], shrunk: Path, command: Callable
) -> None:
    last = shrunk / "checkpoints/last.ckpt"
    given = (f"checkpoint={last}", *FEW, "prune.min_channels=1", *settings, "hydra.run.dir=run")
    done = command("prune", *given)
    assert done.status == 0, done.err
    found, born = summary(Path("run")), summary(shrunk)
    assert (found["params_dense"], found["macs_dense"]) == (born["params_born"], born["macs_born"])
    assert found["widths"]["layer1.0.bn1"] == 16
    target = found["target"]
    removed = 1 - found[f"{target}_pruned"] / found[f"{target}_dense"]
    assert removed == pytest.approx(found["ratio"], abs=0.03)
    assert not found["pruned_before"]


def test_a_valley_counts_what_went(shrunk: Path) -> None:
    """The channels that went are its lower mode, so that none of those left has to go."""
    model = load_model(shrunk / "checkpoints/last.ckpt")
    born = {"params": 1, "macs": 1, "widths": {}, "gone": [1e-4 * (1 + i / 99) for i in range(99)]}
    for _, norm in scaled_norms(model):
        norm.weight.data.copy_(torch.linspace(1.5, 2.5, norm.num_features))
    options = {"ratio": "auto", "scope": "global", "target": "channels"}
    found = remaining(model, torch.zeros(1, 3, 32, 32), options, born)
    assert found["ratio"] is None
    assert 1e-3 < found["threshold"] < 0.8
    with pytest.raises(PruningError, match=r"ratio=auto with prune\.scope=local"):
        remaining(model, torch.zeros(1, 3, 32, 32), {**options, "scope": "local"}, born)
    with pytest.raises(PruningError, match="do not show two modes"):
        remaining(model, torch.zeros(1, 3, 32, 32), options, {**born, "gone": []})


def test_what_went_already_may_be_more_than_is_asked(shrunk: Path, command: Callable) -> None:
    last = shrunk / "checkpoints/last.ckpt"
    given = (f"checkpoint={last}", *FEW, "prune.ratio=0.01", "hydra.run.dir=run")
    with pytest.warns(UserWarning, match="prune.ratio=0.01 was asked for, .* went in training"):
        assert command("prune", *given).status == 0
    found = summary(Path("run"))
    assert found["macs_pruned"] == summary(shrunk)["macs_by_epoch"][-1]


def test_from_python(command: Callable) -> None:
    few = [*FEW[1:], "trainer.precision=32-true", "shrink.below=0.49", "method.reg_weight=0.02"]
    model, logs = rni_pl.train(
        "digits", "resnet20", epochs=2, shrink=1, device="cpu", overrides=few, run_dir="run"
    )
    by_epoch = logs["summary"]["macs_by_epoch"]
    assert by_epoch[1] < by_epoch[0]
    assert (
        load_model("run")(torch.zeros(1, 3, 32, 32)).shape == model(torch.zeros(1, 3, 32, 32)).shape
    )


def test_the_fast_presets(command: Callable, trained: Path) -> None:
    given = ("experiment=fast", "arch=resnet20", "data=digits", "debug=few_batches")
    assert command("train", *given, "hydra.run.dir=dense").status == 0
    assert "macs_by_epoch" in summary(Path("dense"))
    given = ("experiment=prune_fast", "checkpoint=dense", "debug=few_batches")
    done = command("prune", *given, "hydra.run.dir=small")
    assert done.status == 0, done.err


def test_off_is_off(command: Callable) -> None:
    for settings in ((), ("shrink.every=1", "shrink.below=1e-9")):
        run = f"run{len(settings)}"
        done = command("train", *STRONG, *settings, f"hydra.run.dir={run}")
        assert done.status == 0, done.err
    states: list[Any] = [
        torch.load(f"run{n}/checkpoints/last.ckpt", weights_only=True)["state_dict"] for n in (0, 2)
    ]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    assert "macs_born" not in json.loads(Path("run0/summary.json").read_text())

"""Going on with a run from its stored configuration, which nobody has to trust."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import SHORT
from left_by_runs import files, stop_after, summary

START = ("arch=resnet20", "data=digits", *SHORT[1:])
TWO = (*START, "trainer.max_epochs=2")


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A finished run of its own."""
    return shutil.copytree(trained, tmp_path / "run")


def change(run_dir: Path, path: str, value: Any) -> None:
    """Set a value in a stored configuration, by its dotted name."""
    file = run_dir / "config.yaml"
    config = yaml.safe_load(file.read_text())
    *parents, last = path.split(".")
    node = config
    for name in parents:
        node = node.setdefault(name, {})
    node[last] = value
    file.write_text(yaml.safe_dump(config))


@pytest.mark.parametrize("stage", ["train", "prune"])
def test_resume_adds_the_missing_epochs(
    command: Callable, trained: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = (f"checkpoint={trained}",) if stage == "prune" else START[:2]
    common = (*start, *SHORT[1:], "trainer.max_epochs=4")
    assert command(stage, *common, "hydra.run.dir=whole").status == 0
    with monkeypatch.context() as patch:
        stop_after(patch, epochs=3)
        assert "interrupted" in command(stage, *common, "hydra.run.dir=parts").err
    assert not Path("parts/summary.json").exists()
    Path("parts").rename("moved")
    finished = command(stage, "resume=moved")
    assert finished.status == 0, finished.err
    assert not Path("runs").exists()
    parts, whole = summary("moved"), summary("whole")
    assert {key for key in whole if parts[key] != whole[key]} <= {"seconds", "images_per_second"}


def test_what_is_given_anew_replaces_the_runs_own(command: Callable, run: Path) -> None:
    """Settings that only this run has are known, too; all else stays as it was."""
    for lr in ("0.25", "0.5", "0.25"):
        done = command("train", f"resume={run}", f"optimizer.lr={lr}", "method.shift=0.5")
        assert done.status == 0, done.err
        config = yaml.safe_load((run / "config.yaml").read_text())
        assert (config["optimizer"]["lr"], config["method"]["shift"]) == (float(lr), 0.5)
        assert config["data"]["batch_size"] == 16
    assert "lr: 0.125" in command("train", f"resume={run}", "optimizer.lr=0.125", "--cfg=job").out
    for given, words in (
        ("optimizer.lrr=1", "optimizer.lrr is unknown"),
        ("optimizer.lr=0", "optimizer.lr=0 is not allowed"),
        ("method=l1", "method=l1 is not allowed with resume=DIR, which has a method already"),
        ("experiment=paper", "experiment"),
        ("hydra.run.dir=x", "a run stays in its directory"),
        ("seed=1,2", "is for sweeps"),
    ):
        refused = command("train", f"resume={run}", given)
        assert refused.status == 2, given
        assert words in refused.err
    assert "goes on by itself" in command("train", "-m", f"resume={run}").err


@pytest.mark.parametrize(
    ("stage", "given"),
    [
        ("train", "arch._target_=rni_pl.models.resnet32"),
        ("train", "method._target_=rni_pl.regularisers.L1"),
        ("train", "seed=7"),
        ("train", "data.batch_size=32"),
        ("train", "data.val_fraction=0.2"),
        ("train", "data.name=cifar10"),
        ("train", "trainer.limit_train_batches=7"),
        ("prune", "prune.ratio=0.9"),
        ("prune", "prune.absorb=true"),
    ],
)
def test_what_is_settled_cannot_change(
    command: Callable, trained: Path, pruned: Path, tmp_path: Path, stage: str, given: str
) -> None:
    run = shutil.copytree({"train": trained, "prune": pruned}[stage], tmp_path / "run")
    before = files(run)
    refused = command(stage, f"resume={run}", given, "trainer.max_epochs=2")
    assert refused.status == 2
    assert refused.err.startswith(f"error: resume= cannot change {given.partition('=')[0]} from")
    assert files(run) == before


def test_a_run_does_not_end_before_it_has_come(command: Callable, run: Path) -> None:
    assert command("train", f"resume={run}", "trainer.max_epochs=2").status == 0
    refused = command("train", f"resume={run}", "trainer.max_epochs=1")
    assert "trainer.max_epochs=1 is not allowed: " in refused.err
    assert "has come to epoch 2" in refused.err


def test_another_data_set_is_refused(command: Callable, tmp_path: Path) -> None:
    from PIL import Image

    def picture(place: str, count: int) -> None:
        (tmp_path / place).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (32, 32), (9 * i, 0, 0)).save(tmp_path / place / f"{i}.png")

    for root, classes, count in (("one", "ab", 8), ("more", "ab", 9), ("other", "ac", 8)):
        for name in classes:
            picture(f"{root}/train/{name}", count)
            picture(f"{root}/test/{name}", 2)
    settings = ("data.batch_size=4", "trainer.max_epochs=1", "data.padding=0")
    start = ("arch=resnet20", "data=image_folder", "data.root=one", *settings)
    assert command("train", *start, "hydra.run.dir=run").status == 0
    before = files("run")
    for root, words in (("more", "16+2+4 images now"), ("other", "2 classes (a, c, ...)")):
        refused = command("train", "resume=run", f"data.root={root}", "trainer.max_epochs=2")
        assert refused.status == 2
        assert "on other data than there are in data.root now" in refused.err
        assert words in refused.err
    assert files("run") == before
    Path("one").rename("moved")
    moved = command("train", "resume=run", "data.root=moved", "trainer.max_epochs=2")
    assert moved.status == 0, moved.err


def test_another_network_of_the_same_name_is_refused(
    command: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_net_1.py").write_text("from rni_pl.models import resnet20 as net")
    (tmp_path / "my_net_2.py").write_text("from rni_pl.models import resnet32 as net")
    own = ("arch=custom", "arch._target_=my_net_1.net", *START[1:], "trainer.max_epochs=1")
    assert command("train", *own, "hydra.run.dir=run").status == 0
    change(Path("run"), "arch._target_", "my_net_2.net")
    last = Path("run/checkpoints/last.ckpt")
    renamed = torch.load(last, weights_only=True)
    renamed["hyper_parameters"]["spec"]["arch"]["_target_"] = "my_net_2.net"
    torch.save(renamed, last)
    before = files("run")
    refused = command("train", "resume=run", "allow=[my_net_2.net]", "trainer.max_epochs=2")
    assert refused.status == 2
    assert "its weights are those of another network than its configuration builds" in refused.err
    assert files("run") == before


def test_more_patience_after_early_stopping(command: Callable) -> None:
    early = ("callbacks=early_stopping", "+callbacks.early_stopping.min_delta=2")
    patience = "callbacks.early_stopping.patience"
    start = (*START, "trainer.max_epochs=8", *early, f"{patience}=1", "hydra.run.dir=early")
    assert command("train", *start).status == 0
    assert summary("early")["epochs"] == 2
    more = command("train", "resume=early", f"{patience}=4")
    assert more.status == 0, more.err
    assert summary("early")["epochs"] == 5


def test_going_on_in_another_precision_is_said(
    command: Callable, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """``auto`` may stand for another precision on another machine."""
    with monkeypatch.context() as patch:
        stop_after(patch)
        command("train", *TWO, "trainer.precision=32-true", "hydra.run.dir=parts")
    shutil.copytree("parts", "same")
    with pytest.warns(UserWarning, match="began in precision 32-true and goes on in bf16-mixed"):
        finished = command("train", "resume=parts", "trainer.precision=bf16-mixed")
    assert finished.status == 0, finished.err
    assert summary("parts")["precision"] == "bf16-mixed"
    recwarn.clear()
    assert command("train", "resume=same").status == 0
    assert not [one for one in recwarn if "precision" in str(one.message)]


def test_a_network_of_ones_own_is_allowed_by_name(
    command: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    (Path("my_conf") / "arch").mkdir(parents=True)
    Path("my_conf/arch/mine.yaml").write_text("_target_: nets.Dropping\n")
    start = ("--config-dir=my_conf", "arch=mine", *TWO[1:])
    with monkeypatch.context() as patch:
        stop_after(patch)
        assert "interrupted" in command("train", *start, "hydra.run.dir=mine").err
    assert "allow=[nets.Dropping]" in command("train", "resume=mine").err
    finished = command("train", "resume=mine", "allow=[nets.Dropping]")
    assert finished.status == 0, finished.err
    assert summary("mine")["epochs"] == 2


FOLDER = {"_target_": "os.mkdir", "path": "proof"}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("method", FOLDER),
        ("arch", FOLDER),
        ("arch._target_", "timm.models.load_checkpoint"),
        ("arch", {"_target_": "timm.create_model", "model_name": "hf-hub:someone/network"}),
        ("data.extra", FOLDER),
        ("data.mean", FOLDER),
        ("data.source._target_", "rni_pl.training.fitting.instantiate"),
        ("callbacks.mine", FOLDER),
        ("logger.mine", FOLDER),
        ("trainer.profiler", {"deep": [{"er": FOLDER}]}),
        ("trainer._target_", ["os.mkdir"]),
        ("optimizer.lr", "${oc.env:HOME}"),
        ("data.name", "${own:proof}"),
    ],
)
def test_nothing_in_a_run_directory_is_called_by_itself(
    command: Callable, run: Path, path: str, value: Any
) -> None:
    change(run, path, value)
    change(run, "allow", ["os.mkdir"])
    finished = command("train", f"resume={run}", "trainer.max_epochs=2")
    assert finished.status == 2
    said = ("not trusted", "is not of rni_pl.models", "names no network", "refused", "not allowed")
    assert any(words in finished.err for words in said), finished.err
    assert not Path("proof").exists()


@pytest.mark.parametrize("key", ["init", "arch.weights", "arch.checkpoint_path"])
def test_a_run_without_checkpoint_reads_no_weights_by_itself(
    command: Callable, run: Path, key: str
) -> None:
    shutil.rmtree(run / "checkpoints")
    (run / "summary.json").unlink()
    change(run, key, "/elsewhere/weights.pt")
    refused = command("train", f"resume={run}").err
    assert f"{key} names weights to read and is not trusted" in refused
    given = command("train", f"resume={run}", f"{key}=/elsewhere/weights.pt").err
    assert "not trusted" not in given
    assert given.startswith("error: ")


def test_resumed_pruning_allows_no_network_by_itself(command: Callable, pruned: Path) -> None:
    shutil.copytree(pruned, "copy")
    change(Path("copy"), "allow", ["os.mkdir"])
    last = Path("copy/checkpoints/last.ckpt")
    checkpoint = torch.load(last, weights_only=True)
    checkpoint["hyper_parameters"]["spec"]["arch"] = FOLDER
    torch.save(checkpoint, last)
    assert "is not of rni_pl.models" in command("prune", "resume=copy").err
    assert not Path("proof").exists()


def test_the_network_that_was_pruned_may_move_but_not_change(
    command: Callable, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(trained, "dense")
    start = ("checkpoint=dense", "distill.weight=0.5", *SHORT[1:], "trainer.max_epochs=2")
    with monkeypatch.context() as patch:
        stop_after(patch)
        assert "interrupted" in command("prune", *start, "hydra.run.dir=run").err
    best = Path("dense/checkpoints/best.ckpt")
    shutil.copytree("dense", "moved")
    changed = torch.load(best, weights_only=True)
    changed["state_dict"]["model.conv1.weight"] *= 2
    torch.save(changed, best)
    words = "run holds a run of other weights than checkpoint="
    assert words in command("prune", "resume=run").err  # it would be another teacher
    assert words in command("prune", "resume=run", "checkpoint=dense").err
    shutil.rmtree("dense")
    finished = command("prune", "resume=run", "checkpoint=moved")
    assert finished.status == 0, finished.err


def test_a_run_of_another_command_is_refused(command: Callable, run: Path) -> None:
    assert "holds no run of prune.py" in command("prune", f"resume={run}").err
    assert "nowhere is no directory of a run" in command("train", "resume=nowhere").err

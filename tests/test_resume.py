"""Going on with a run from its directory, which nobody has to trust."""

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from conftest import SHORT
from test_commands import summary

from rni_pl.errors import UnknownChoiceError


@pytest.mark.parametrize("stage", ["train", "prune"])
def test_resume_adds_the_missing_epochs(
    command: Callable, trained: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = (f"checkpoint={trained}",) if stage == "prune" else ("arch=resnet20", "data=digits")
    common = (*SHORT[1:], "trainer.max_epochs=4")
    assert command(stage, *start, *common, "hydra.run.dir=whole").status == 0
    with monkeypatch.context() as patch:
        interrupt_after_an_epoch(patch, epochs=3)
        assert "interrupted" in command(stage, *start, *common, "hydra.run.dir=parts").err
    assert not Path("parts/summary.json").exists()
    Path("parts").rename("moved")
    finished = command(stage, "resume=moved")
    assert finished.status == 0, finished.err
    assert not Path("runs").exists()
    parts, whole = summary(Path("moved")), summary(Path("whole"))
    differ = {key for key in whole if parts[key] != whole[key]}
    assert differ <= {"seconds", "images_per_second"}


@pytest.mark.parametrize("again", ["--config-dir=my_conf", "hydra.searchpath=[my_conf]"])
def test_settings_of_ones_own_are_given_again(
    command: Callable, monkeypatch: pytest.MonkeyPatch, again: str
) -> None:
    (Path("my_conf") / "arch").mkdir(parents=True)
    Path("my_conf/arch/mine.yaml").write_text("_target_: nets.Dropping\n")
    start = ("--config-dir=my_conf", "arch=mine", "data=digits", *SHORT[1:], "trainer.max_epochs=2")
    with monkeypatch.context() as patch:
        interrupt_after_an_epoch(patch)
        assert "interrupted" in command("train", *start, "hydra.run.dir=mine").err
    refused = command("train", "resume=mine")
    assert "arch=mine is unknown" in refused.err
    assert "--config-dir" in refused.err
    finished = command("train", again, "resume=mine")
    assert finished.status == 0, finished.err
    assert summary(Path("mine"))["epochs"] == 2


def test_of_what_is_given_anew_the_last_counts(command: Callable, trained: Path) -> None:
    """Also where the run has had that value before, and then another."""
    shutil.copytree(trained, "run")
    for lr in ("0.25", "0.5", "0.25"):
        finished = command("train", "resume=run", f"optimizer.lr={lr}")
        assert finished.status == 0, finished.err
        config = yaml.safe_load(Path("run/config.yaml").read_text())
        assert config["optimizer"]["lr"] == float(lr)


def test_an_unknown_choice_travels_between_processes() -> None:
    error = pickle.loads(pickle.dumps(UnknownChoiceError("arch=x is unknown", "arch=x")))
    assert (str(error), error.override) == ("arch=x is unknown", "arch=x")


def test_going_on_in_another_precision_is_said(
    command: Callable, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """``auto`` may stand for another precision on another machine."""
    start = ("arch=resnet20", "data=digits", *SHORT[1:], "trainer.max_epochs=2")
    with monkeypatch.context() as patch:
        interrupt_after_an_epoch(patch)
        command("train", *start, "trainer.precision=32-true", "hydra.run.dir=parts")
    shutil.copytree("parts", "same")
    with pytest.warns(UserWarning, match="began in precision 32-true and goes on in bf16-mixed"):
        finished = command("train", "resume=parts", "trainer.precision=bf16-mixed")
    assert finished.status == 0, finished.err
    assert summary(Path("parts"))["precision"] == "bf16-mixed"
    recwarn.clear()
    finished = command("train", "resume=same")
    assert finished.status == 0, finished.err
    assert not [one for one in recwarn if "precision" in str(one.message)]


def interrupt_after_an_epoch(monkeypatch: pytest.MonkeyPatch, epochs: int = 1) -> None:
    """Leave the run as it is on disk after its first epochs."""
    from rni_pl.errors import RniError
    from rni_pl.stages import runs

    fit = runs.fit

    def fit_once(trainer, *arguments):
        from pytorch_lightning.callbacks import LambdaCallback

        def stop(*_):
            if trainer.current_epoch == epochs:
                raise RniError("interrupted")

        trainer.callbacks.append(LambdaCallback(on_train_epoch_start=stop))
        fit(trainer, *arguments)

    monkeypatch.setattr(runs, "fit", fit_once)


MAKES_A_FOLDER = "{_target_: os.mkdir, path: proof}"


@pytest.mark.parametrize(
    "override",
    [
        "method._target_=os.mkdir",
        "arch._target_=os.mkdir",
        f"arch={MAKES_A_FOLDER}",
        f"+data.extra={MAKES_A_FOLDER}",
        f"data.mean={MAKES_A_FOLDER}",
        f"++trainer.callbacks=[{MAKES_A_FOLDER}]",
        "data=../../elsewhere",
        "+arch.model_name=hf-hub:someone/network",
        "+arch.model_name=local-dir:elsewhere",
        "+method@data=rni",
        "data.source._target_=rni_pl.stages.runs.instantiate",
    ],
)
def test_resume_trusts_no_code_from_the_run_directory(
    command: Callable, trained: Path, override: str
) -> None:
    import shutil

    shutil.copytree(trained, "copy")
    file = Path("copy/config.yaml")
    config = yaml.safe_load(file.read_text())
    config["overrides"] += [override, "allow=[os.mkdir]"]
    config["allow"] = ["os.mkdir"]
    for group in ("method", "data", "arch", "trainer"):  # what is resolved there is not even read
        config[group]["_target_"] = "os.mkdir"
    file.write_text(yaml.safe_dump(config))
    finished = command("train", "resume=copy")
    assert finished.status == 2
    assert "not trusted" in finished.err or "is not of rni_pl.models" in finished.err
    assert not Path("proof").exists()


def test_a_run_without_checkpoint_reads_no_weights_by_itself(
    command: Callable, trained: Path
) -> None:
    shutil.copytree(trained, "copy")
    shutil.rmtree("copy/checkpoints")
    Path("copy/summary.json").unlink()
    file = Path("copy/config.yaml")
    config = yaml.safe_load(file.read_text())
    config["overrides"].append("init=/elsewhere/weights.pt")
    file.write_text(yaml.safe_dump(config))
    refused = command("train", "resume=copy").err
    assert "'init=/elsewhere/weights.pt' in its config.yaml is not trusted" in refused
    assert (
        "/elsewhere/weights.pt does not exist"
        in command("train", "resume=copy", "init=/elsewhere/weights.pt").err
    )


def test_what_a_step_is_cannot_change(command: Callable, trained: Path) -> None:
    """The schedule and the place in an epoch are counted in steps."""
    for setting in ("data.batch_size=32", "trainer.limit_train_batches=7"):
        refused = command("train", f"resume={trained}", setting)
        assert refused.err.startswith(f"error: resume= cannot change {setting.partition('=')[0]}")


def test_the_network_that_was_pruned_may_move_but_not_change(
    command: Callable, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(trained, "dense")
    start = ("checkpoint=dense", "distill.weight=0.5", *SHORT[1:], "trainer.max_epochs=2")
    with monkeypatch.context() as patch:
        interrupt_after_an_epoch(patch)
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


def test_resumed_pruning_allows_no_network_by_itself(command: Callable, pruned: Path) -> None:
    import shutil

    shutil.copytree(pruned, "copy")
    file = Path("copy/config.yaml")
    config = yaml.safe_load(file.read_text())
    config["allow"] = ["os.mkdir"]
    config["overrides"].append("allow=[os.mkdir]")
    file.write_text(yaml.safe_dump(config))
    last = Path("copy/checkpoints/last.ckpt")
    checkpoint = torch.load(last, weights_only=True)
    checkpoint["hyper_parameters"]["spec"]["arch"] = {"_target_": "os.mkdir", "path": "proof"}
    torch.save(checkpoint, last)
    assert "is not of rni_pl.models" in command("prune", "resume=copy").err
    assert not Path("proof").exists()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("truncated", "last.ckpt"),
        ("yaml", "no sound config.yaml"),
        ("binary", "no sound config.yaml"),
        ("other command", "no run of train.py"),
        ("value", "seed"),
    ],
)
def test_damaged_runs_do_not_resume(
    command: Callable, trained: Path, damage: str, words: str
) -> None:
    import shutil

    shutil.copytree(trained, "copy")
    file = Path("copy/config.yaml")
    text = file.read_text()
    if damage == "truncated":
        for checkpoint in Path("copy/checkpoints").iterdir():
            checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    elif damage == "yaml":
        file.write_text("a: [")
    elif damage == "binary":
        file.write_bytes(b"\xff\xfe\x00")
    elif damage == "other command":
        file.write_text(text.replace("command: train", "command: prune"))
    elif damage == "value":
        file.write_text(text.replace("- arch=resnet20", "- arch=resnet20\n- seed=abc"))
    finished = command("train", "resume=copy")
    assert finished.status == 2
    assert len(finished.err.strip().splitlines()) == 1, finished.err
    assert words in finished.err


def test_a_finished_run_without_checkpoints_is_not_started_anew(
    command: Callable, trained: Path
) -> None:
    import shutil

    shutil.copytree(trained, "copy")
    shutil.rmtree("copy/checkpoints")
    before = Path("copy/summary.json").read_bytes()
    refused = command("train", "resume=copy")
    assert refused.status == 2
    assert refused.err.startswith("error: resume=copy is finished, but its checkpoints are gone")
    assert Path("copy/summary.json").read_bytes() == before

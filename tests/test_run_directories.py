"""What must not happen to a run that is in its directory already, and what is not passed over."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from conftest import SHORT
from test_commands import summary
from test_resume import interrupt_after_an_epoch

import rni_pl
from rni_pl.stages import rundir

# Accumulated, and validated every other epoch.
TWO_A_STEP = ("trainer.accumulate_grad_batches=2", "trainer.check_val_every_n_epoch=2")
START = ("arch=resnet20", "data=digits", *SHORT)


def files(run_dir: Path) -> dict[str, bytes]:
    """All of a run but its log."""
    found = (f for f in run_dir.rglob("*") if f.is_file() and f.suffix != ".log")
    return {str(file.relative_to(run_dir)): file.read_bytes() for file in found}


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A finished run of its own."""
    return shutil.copytree(trained, tmp_path / "run")


def test_a_network_is_not_pruned_into_its_own_directory(command: Callable, run: Path) -> None:
    before = files(run)
    for given in (run, run / "checkpoints" / "best.ckpt"):
        refused = command("prune", f"checkpoint={given}", f"hydra.run.dir={run}", *SHORT[1:])
        assert refused.status == 2
        assert "choose another hydra.run.dir" in refused.err
    assert files(run) == before


def test_a_run_is_back_where_the_next_one_fails(command: Callable, run: Path) -> None:
    before = files(run)
    failed = command("train", *START, "trainer.max_time=00:00:00:00", f"hydra.run.dir={run}")
    assert failed.status == 2
    assert "before its first validation" in failed.err
    assert files(run) == before


def test_a_run_is_back_where_the_next_one_breaks_down(
    command: Callable, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files(run)
    monkeypatch.setattr("pytorch_lightning.callbacks.Timer.on_train_start", breaks_down)
    timer = "+trainer.callbacks=[{_target_: pytorch_lightning.callbacks.Timer}]"
    broken = command("train", *START, timer, f"hydra.run.dir={run}")
    assert broken.status == 1
    assert "no memory left" in broken.err
    assert files(run) == before


def breaks_down(*_: object) -> None:
    raise RuntimeError("no memory left")


def test_a_run_that_waits_after_a_kill_is_back(command: Callable, run: Path) -> None:
    before = files(run)
    rundir.set_aside(run, run / ".replaced")  # and the process was killed
    failed = command("train", *START, "trainer.max_time=00:00:00:00", f"hydra.run.dir={run}")
    assert "before its first validation" in failed.err
    assert files(run) == before


def test_a_finished_run_that_goes_on_is_not_finished(
    command: Callable, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    longer = (f"resume={run}", "trainer.max_epochs=4")
    with monkeypatch.context() as patch:
        interrupt_after_an_epoch(patch, epochs=2)
        assert "interrupted" in command("train", *longer).err
    assert not (run / "summary.json").exists()
    queued = (*START[:2], *SHORT[1:], "trainer.max_epochs=4", f"hydra.run.dir={run}")
    assert command("train", *queued, "existing=continue").status == 0
    assert summary(run)["epochs"] == 4


def test_a_finished_run_that_cannot_go_on_stays_as_it_is(
    command: Callable, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files(run)
    monkeypatch.setattr("rni_pl.classifier.Classifier.on_train_start", breaks_down)
    assert command("train", f"resume={run}", "trainer.max_epochs=4").status == 1
    for name in ("config.yaml", "summary.json"):
        assert files(run)[name] == before[name]


def test_a_run_is_replaced_whole(command: Callable, run: Path) -> None:
    (run / "failure.json").write_text("{}")
    with pytest.warns(UserWarning, match="holds an earlier run, which this one replaces"):
        assert command("train", *START, "seed=1", f"hydra.run.dir={run}").status == 0
    assert summary(run)["seed"] == 1
    assert not (run / "failure.json").exists()
    assert not (run / ".replaced").exists()


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ("method=l1", "method._target_"),
        ("arch=resnet32", "arch._target_"),
        ("trainer.max_epochs=1", "trainer.max_epochs=1"),
    ],
)
def test_what_is_settled_is_not_changed_by_resume(
    command: Callable, tmp_path: Path, given: str, key: str
) -> None:
    start = ("arch=resnet20", "data=digits", *SHORT[1:])
    assert command("train", *start, "trainer.max_epochs=2", "hydra.run.dir=run").status == 0
    before = files(Path("run"))
    refused = command("train", "resume=run", given)
    assert refused.status == 2
    assert key in refused.err
    assert files(Path("run")) == before


@pytest.mark.parametrize("given", ["prune.ratio=0.9", "prune.absorb=true"])
def test_a_pruned_network_stays_pruned_as_it_is(
    command: Callable, pruned: Path, tmp_path: Path, given: str
) -> None:
    run = shutil.copytree(pruned, tmp_path / "pruned_run")
    before = files(run)
    refused = command("prune", f"resume={run}", given, "trainer.max_epochs=2")
    assert refused.status == 2
    assert given.partition("=")[0] in refused.err
    assert files(run) == before


def test_an_experiment_does_not_replace_other_settings(command: Callable) -> None:
    start = ("experiment=paper", *START)
    assert command("train", *start).status == 0
    place = Path("runs/paper/digits_resnet20_rni_plain_0")
    before = files(place)
    refused = command("train", *start, "method.reg_weight=0.01")
    assert refused.status == 2
    assert "holds a run of another configuration (method.reg_weight" in refused.err
    assert "skipped" in command("train", *start).out
    assert files(place) == before


@pytest.mark.parametrize("given", ["", "checkpoints/best.ckpt"])
def test_an_experiment_writes_beside_the_network(
    command: Callable, trained: Path, tmp_path: Path, given: str
) -> None:
    run = shutil.copytree(trained, tmp_path / "elsewhere" / "dense")
    start = ("experiment=prune_paper", *SHORT[1:], "trainer.max_epochs=1")
    assert command("prune", f"checkpoint={run}/{given}", *start).status == 0
    assert (tmp_path / "elsewhere" / "dense_0.9_plain_0" / "summary.json").is_file()


def test_callbacks_of_ones_own(command: Callable) -> None:
    stopping = "+trainer.callbacks=[{_target_: pytorch_lightning.callbacks.Timer, duration: 9}]"
    unknown = command("train", *START, stopping)
    assert unknown.status == 2
    assert "trainer.callbacks" in unknown.err
    early = (
        "+trainer.callbacks=[{_target_: pytorch_lightning.callbacks.EarlyStopping, "
        "monitor: val/acc, patience: 0, mode: max, min_delta: 2}]"
    )
    start = ("arch=resnet20", "data=digits", *SHORT[1:], "trainer.max_epochs=4")
    assert command("train", *start, early, "hydra.run.dir=early").status == 0
    assert summary(Path("early"))["epochs"] == 2
    refused = command("train", *START, "+trainer.logger=false")
    assert "trainer.logger is not allowed" in refused.err


def test_a_run_with_callbacks_of_ones_own_goes_on(command: Callable) -> None:
    """The class that it names is trusted where the command names it, too."""
    early = "+trainer.callbacks=[{_target_: pytorch_lightning.callbacks.DeviceStatsMonitor}]"
    run = (*START, early, "hydra.run.dir=run")
    assert command("train", *run).status == 0
    again = command("train", *run, "existing=continue")
    assert "is finished: skipped" in again.out
    alone = command("train", "resume=run")
    assert "is not trusted; if it is yours, give it again" in alone.err
    finished = command("train", "resume=run", early, "trainer.max_epochs=2")
    assert finished.status == 0, finished.err
    assert summary(Path("run"))["epochs"] == 2


def test_checkpoints_of_ones_own_do_not_pick_the_weights(tmp_path: Path) -> None:
    settings = {"dataset": "digits", "arch": "resnet20", "epochs": 3, "batch_size": 16}
    model, logs = rni_pl.train(**settings, overrides=SHORT[1:3])
    which = "max" if logs["best_epoch"] == 0 else "min"  # an epoch that is not the best
    own = (
        "+trainer.callbacks=[{_target_: pytorch_lightning.callbacks.ModelCheckpoint, "
        f"dirpath: {tmp_path}, monitor: epoch, mode: {which}}}]"
    )
    other, _ = rni_pl.train(**settings, overrides=[*SHORT[1:3], own])
    assert len(list(tmp_path.glob("*.ckpt"))) == 1
    for name, weight in model.named_parameters():
        assert torch.equal(weight, other.get_parameter(name)), name


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["trainer.max_steps=2"], "not allowed: the first validation comes after 3 steps"),
        (["trainer.max_steps=4"], "ends 1 steps after a validation"),
        (["trainer.max_steps=6"], ""),
        (["trainer.max_steps=99"], ""),  # the epochs end before
        (
            ["trainer.max_steps=3", "trainer.limit_train_batches=6", *TWO_A_STEP],
            "not allowed: the first validation comes after 6 steps",
        ),
        (["trainer.max_steps=6", "trainer.limit_train_batches=5", *TWO_A_STEP], ""),
        (["trainer.max_steps=4", "+trainer.val_check_interval=2"], ""),
    ],
)
def test_steps_and_the_validations_between(
    command: Callable, settings: list[str], words: str, recwarn: pytest.WarningsRecorder
) -> None:
    start = ("arch=resnet20", "data=digits", *SHORT[1:], "trainer.max_epochs=3")
    done = command("train", *start, *settings, "hydra.run.dir=run")
    assert done.status == (2 if words.startswith("not") else 0), done.err
    said = done.err + "".join(str(one.message) for one in recwarn)
    assert words in said
    assert words or "max_steps" not in said


def test_an_unknown_strategy_is_refused(command: Callable) -> None:
    refused = command("train", *START, "trainer.strategy=nonsense")
    assert refused.status == 2
    assert "nonsense" in refused.err


def test_a_validation_split_is_made_where_asked_for(command: Callable) -> None:
    start = (*START, "protocol=paper", "hydra.run.dir=on_test")
    assert command("train", *start).status == 0
    prune = ("checkpoint=on_test", *SHORT[1:], "trainer.max_epochs=1")
    for given, share in (((), 0.0), (("protocol=validation",), 0.1)):
        assert command("prune", *prune, *given, f"hydra.run.dir=p{share}").status == 0
        config = yaml.safe_load(Path(f"p{share}/config.yaml").read_text())
        assert config["data"]["val_fraction"] == share


def test_data_in_a_folder_between_underscores(command: Callable) -> None:
    start = ("arch=resnet20", "data=digits", *SHORT[1:], "data.root=_data_")
    assert command("train", *start, "trainer.max_epochs=1", "hydra.run.dir=run").status == 0
    assert command("train", "resume=run", "trainer.max_epochs=2").status == 0


def test_data_that_are_no_images(command: Callable) -> None:
    Path("my_conf/data").mkdir(parents=True)
    Path("my_conf/data/three.yaml").write_text(
        "defaults: [in_memory]\nname: three\nchoice: three\n"
        "source: {_target_: builtins.dict, _partial_: true}\n"
    )
    refused = command("train", "--config-dir=my_conf", "arch=resnet20", "data=three")
    assert refused.status == 2
    assert "dict returned dict, not Images" in refused.err


def test_data_of_a_configuration_that_is_not_given_again(command: Callable) -> None:
    Path("my_conf/data").mkdir(parents=True)
    digits = "defaults: [in_memory]\nname: mine\nchoice: mine\n"
    source = "source: {_target_: rni_pl.data.digits, _partial_: true}\n"
    Path("my_conf/data/mine.yaml").write_text(digits + source)
    start = ("--config-dir=my_conf", "arch=resnet20", "data=mine", *SHORT)
    assert command("train", *start, "hydra.run.dir=run").status == 0
    refused = command("prune", "checkpoint=run", *SHORT[1:])
    assert refused.status == 2
    assert "data=mine, which is not known here: give the --config-dir" in refused.err


def test_the_method_is_the_networks_own() -> None:
    settings = {"dataset": "digits", "epochs": 1}
    short = ["trainer.limit_train_batches=2", "trainer.limit_val_batches=1"]
    model, _ = rni_pl.train(**settings, arch="resnet20", method="ucs", overrides=short)
    _, logs = rni_pl.prune_finetune(model, **settings, overrides=short)
    assert (logs["summary"]["method"], logs["summary"]["scope"]) == ("ucs", "local")

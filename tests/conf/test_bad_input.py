"""Every mistake is one clear line, a non-zero exit, and no run directory left behind."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import SHORT, run_python
from PIL import Image
from refusals import refused, unplug

from rni_pl import rules
from rni_pl.config import compose_config
from rni_pl.errors import ConfigError
from rni_pl.latency import engines
from rni_pl.pruning import selection
from rni_pl.training import launch

DIGITS = ("arch=resnet20", "data=digits", *SHORT)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["method=lasso"], ["method=lasso", "l1", "rni", "ucs"]),
        (["arch=alexnet"], ["arch=alexnet", "resnet56", "vgg16"]),
        (["data=mnist"], ["data=mnist", "cifar10", "digits", "image_folder"]),
        (["method.reg_wieght=1"], ["reg_wieght"]),
        (["+optimizer.foo=1"], ["optimizer", "foo"]),
        (["trainer.overfit_batches=2"], ["trainer.overfit_batches=2", "limit_train_batches"]),
        (["arch=resnet20", "+arch.norm=sigbn", "method=l1"], ["method=l1", "BatchNorm"]),
        (["nonsense=1"], ["nonsense"]),
        (["just words"], ["just words"]),
        (["arch=timm"], ["arch.model_name is missing", "arch.model_name=VALUE"]),
        (["seed=-1"], ["seed=-1", "an integer from 0"]),
        (["seed=abc"], ["seed='abc'"]),
        (["method.reg_weight=-1"], ["method.reg_weight=-1", ">= 0"]),
        (["method.shift=inf"], ["method.shift=inf", "finite"]),
        (["method=polarization", "method.t=abc"], ["method.t='abc'", "finite numbers"]),
        (["optimizer.lr=0"], ["optimizer.lr=0", "> 0"]),
        (["optimizer.momentum=0"], ["optimizer: Nesterov momentum requires a momentum"]),
        (["trainer.fast_dev_run=true"], ["trainer.fast_dev_run=True", "limit_train_batches"]),
        (["trainer.limit_test_batches=0"], ["trainer.limit_test_batches=0"]),
        (["trainer.check_val_every_n_epoch=9"], ["trainer.check_val_every_n_epoch=9"]),
        (["trainer=ddp_cpu", "trainer.devices=abc"], ["trainer.devices='abc'"]),
        (["hydra.run.dir=/dev/null/x"], ["/dev/null/x"]),
        (["arch=custom", "arch._target_=torchvision.models.alexnet"], ["alexnet"]),
        (["arch=custom", "arch._target_=torchvision.models.squeezenet1_1"], ["no BatchNorm that"]),
        (["optimizer.lr=nan"], ["optimizer.lr=nan"]),
        (["data.batch_size=1"], ["data.batch_size=1", "from 2"]),
        (["data.val_fraction=1"], ["data.val_fraction=1", "0 <= value < 1"]),
        (["data.val_fraction=0.0001"], ["data.val_fraction=0.0001", "validate"]),
        (["trainer.max_epochs=-1"], ["trainer.max_epochs=-1"]),
        (["trainer.accelerator=abacus"], ["trainer", "abacus"]),
        (["trainer.precision=3"], ["trainer", "3"]),
        (["trainer.sync_batchnorm=maybe"], ["trainer.sync_batchnorm='maybe'", "true or false"]),
        (["trainer.num_nodes=2"], ["trainer.num_nodes=2", "torchrun"]),
        (["arch=custom"], ["arch._target_", "missing"]),
        (["arch=custom", "arch._target_=torchvision.models.nosuch"], ["nosuch"]),
        (["arch=custom", "arch._target_=no.such.module"], ["no.such.module"]),
        (["arch=custom", "arch._target_=math.sqrt"], ["math.sqrt"]),
        (["arch=custom", "arch._target_=torch.zeros"], ["torch.zeros"]),
        (["+arch.widht=3"], ["widht"]),
        (["+arch.num_classes=7"], ["7", "10 classes"]),
        (["resume=nowhere"], ["resume=nowhere"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_train_refuses(command: Callable, arguments: list[str], words: list[str]) -> None:
    if any(a.startswith(("arch=", "data=")) for a in arguments):
        kept = [a for a in DIGITS if a.partition("=")[0] not in {arguments[0].partition("=")[0]}]
        refused(command("train", *kept, *arguments), *words)
    else:
        refused(command("train", *DIGITS, *arguments), *words)


@pytest.mark.parametrize("code", ["raise RuntimeError('odd')", "x = y", "def net(:"])
def test_a_network_in_a_broken_module_is_named(
    command: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    (tmp_path / "odd_module.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    given = "arch=custom", "arch._target_=odd_module.net", "data=digits", *SHORT
    refused(command("train", *given), "arch._target_=odd_module.net cannot be imported")


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("method._target_={}", "method"),
        ("data.source._target_={}", "data"),
        ("+callbacks.mine._target_={}", "callbacks.mine"),
        ("trainer._target_={}", "trainer"),
    ],
)
@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("my_penalties.L2", "No module named 'my_penalties'"),
        ("rni_pl.regularisers.L2", "module 'rni_pl.regularisers' has no attribute 'L2'"),
    ],
)
def test_why_a_class_of_ones_own_cannot_be_imported(
    override: str, what: str, target: str, why: str, tmp_path: Path
) -> None:
    config = compose_config("train", ["arch=resnet20", "data=digits", override.format(target)])
    with pytest.raises(ConfigError) as refused:
        launch.run("train", config, tmp_path)
    assert str(refused.value) == f"{what}: {target} cannot be imported: {why}"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["prune=5"], ["group override"]),
        (["+prune.foo=1"], ["prune.foo is unknown", "prune.ratio"]),
        (["prune.ratio=1"], ["prune.ratio=1", "0 <= ratio < 1"]),
        (["prune.ratio=-0.1"], ["prune.ratio=-0.1"]),
        (["prune.ratio=half"], ["prune.ratio='half'"]),
        (["prune.ratio=0.999"], ["prune.ratio=0.999", "leaves too little"]),
        (["prune.scope=both"], ["prune.scope='both'", "global or local"]),
        (["prune.min_channels=0"], ["prune.min_channels=0"]),
        (["checkpoint=nowhere"], ["checkpoint=", "nowhere does not exist"]),
        (["data=cifar100"], ["cifar100", "data.root"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_prune_refuses(
    command: Callable,
    trained: Path,
    arguments: list[str],
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unplug(monkeypatch)
    given = [f"checkpoint={trained}", *SHORT, *arguments]
    if arguments[0].startswith("checkpoint"):
        given = given[1:]
    words = [word.replace("cifar100", "CIFAR100") for word in words]
    refused(command("prune", *given), *words)


def test_allowed_choices_are_those_that_there_are() -> None:
    for key, choices in (
        ("prune.target", selection.TARGETS),
        ("prune.scope", selection.SCOPES),
    ):
        assert rules.RULES[key].words.replace(" or ", ", ").split(", ") == list(choices), key
    assert tuple(engines.ENGINES) == rules.ENGINES


def test_prune_needs_a_checkpoint(command: Callable) -> None:
    refused(command("prune"), "checkpoint", "missing")


def test_damaged_checkpoints(command: Callable, trained: Path, tmp_path: Path) -> None:
    whole = (trained / "checkpoints" / "best.ckpt").read_bytes()
    (tmp_path / "half.ckpt").write_bytes(whole[: len(whole) // 2])
    torch.save({"net": torch.zeros(1)}, tmp_path / "foreign.ckpt")
    said = {"half": "half.ckpt is damaged", "foreign": "foreign.ckpt was not written by rni_pl"}
    for name, words in said.items():
        refused(command("prune", f"checkpoint={tmp_path}/{name}.ckpt", *SHORT), words)
    refused(command("train", *DIGITS, f"init={trained}"), f"init={trained} is a directory")


def test_data_of_other_classes_than_the_checkpoints(
    command: Callable, trained: Path, tmp_path: Path
) -> None:
    folder(tmp_path, {"train": ["cat", "dog"], "test": ["cat"]}, count=4)
    finished = command(
        "prune", f"checkpoint={trained}", "data=image_folder", f"data.root={tmp_path}", *SHORT
    )
    refused(finished, "10 classes", "has 2")


@pytest.mark.parametrize("data", ["cifar10", "cifar100"])
def test_cifar_without_a_network(
    command: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data: str
) -> None:
    unplug(monkeypatch)
    finished = command("train", f"data={data}", "data.root=here")
    archive = {"cifar10": "cifar-10-python.tar.gz", "cifar100": "cifar-100-python.tar.gz"}[data]
    refused(finished, "data.root=", f"put {archive} into {tmp_path / 'here'}", "data=digits")


def folder(root: Path, classes: dict[str, list[str]], count: int = 2) -> None:
    for split, names in classes.items():
        (root / split).mkdir(parents=True)
        for name in names:
            (root / split / name).mkdir()
            for i in range(count):
                Image.new("RGB", (32, 32), (i, 0, 0)).save(root / split / name / f"{i}.png")


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        ({}, ["train does not exist", "data.root="]),
        ({"train": ["cat"]}, ["test does not exist"]),
        ({"train": [], "test": ["cat"]}, ["train has no classes"]),
        ({"train": ["cat"], "test": []}, ["test has no classes"]),
        ({"train": ["cat"], "test": ["cat", "dog"]}, ["test has classes", "dog"]),
    ],
    ids=["no folder", "no test", "no training classes", "no test classes", "unknown class"],
)
def test_image_folders(
    command: Callable, tmp_path: Path, classes: dict[str, list[str]], words: list[str]
) -> None:
    folder(tmp_path / "data", classes)
    refused(command("train", "data=image_folder"), *words)


def test_in_a_process_of_its_own(tmp_path: Path) -> None:
    import conftest

    done = run_python(str(conftest.ROOT / "train.py"), "method=lasso", cwd=tmp_path)
    assert done.status == 2
    assert len(done.err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_one_bad_job_of_a_sweep_fails_it_and_the_others_run(
    command: Callable, trained: Path, tmp_path: Path
) -> None:
    finished = command(
        "prune",
        "-m",
        f"checkpoint={trained}",
        "prune.ratio=0.999,0.3",
        "hydra.sweep.dir=sweep",
        *SHORT,
    )
    assert finished.status == 2
    assert "leaves too little" in finished.err
    assert (tmp_path / "sweep" / "prune.ratio-0.3" / "summary.json").is_file()
    assert not (tmp_path / "sweep" / "prune.ratio-0.999").exists()

"""The contract of the commands: files, figures, repetition, resumption, sweeps, processes."""

import math
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT, SHORT, run_python
from left_by_runs import NET, summary
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import rni_pl
from rni_pl import helping
from rni_pl.config import compose_config, config_dir
from rni_pl.errors import ConfigError
from rni_pl.export import exporting
from rni_pl.latency import comparing
from rni_pl.training.hardware import choose_precision

DIGITS = ("arch=resnet20", "data=digits", *SHORT)
CONF = Path(config_dir())


def test_training_run_directory(trained: Path) -> None:
    for name in ("checkpoints/best.ckpt", "checkpoints/last.ckpt", "config.yaml"):
        assert (trained / name).is_file()
    found = summary(trained)
    assert list(found)[:10] == [
        "dataset",
        "arch",
        "method",
        "test_acc",
        "best_epoch",
        "epochs",
        "params",
        "macs",
        "seconds",
        "images_per_second",
    ]
    assert (found["dataset"], found["arch"], found["method"]) == ("digits", "resnet20", "rni")
    assert found["params"] == 269034
    assert found["precision"] == choose_precision("auto", "cpu")
    assert 0 <= found["test_acc"] <= 1
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["method"]["reg_weight"] == 1e-4
    assert config["data"]["batch_size"] == 16


def test_pruning_run_directory(trained: Path, pruned: Path) -> None:
    found = summary(pruned)
    wanted = """dataset arch method ratio scope acc_dense acc_pruned acc_finetuned params_dense
        params_pruned macs_dense macs_pruned channels_dense channels_pruned kept"""
    assert set(wanted.split()) <= found.keys()
    assert found["acc_dense"] == summary(trained)["test_acc"]
    assert found["precision"] == choose_precision("auto", "cpu")
    assert found["params_dense"] == 269034
    assert found["scope"] == "global"
    assert found["channels_dense"] == 336
    assert found["channels_pruned"] == sum(found["kept"].values()) == 168
    assert list(found["kept"])[:2] == ["layer1.0.bn1", "layer1.1.bn1"]
    small = rni_pl.load_model(pruned)
    assert found["params_pruned"] == sum(p.numel() for p in small.parameters())
    assert {n: small.get_submodule(n).num_features for n in found["kept"]} == found["kept"]
    assert found["macs_pruned"] == macs_by_hand(small) < found["macs_dense"]


def macs_by_hand(model: torch.nn.Module) -> int:
    """Multiply-accumulates of one 32x32 image, from the shapes each layer sees."""
    total = 0

    def count(layer: torch.nn.Module, _: tuple, output: torch.Tensor) -> None:
        nonlocal total
        total += output.numel() * layer.weight[0].numel()

    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            module.register_forward_hook(count)
    model(torch.zeros(1, 3, 32, 32))
    return total


def test_tensorboard_scalars(trained: Path) -> None:
    events = EventAccumulator(str(trained)).Reload()
    tags = set(events.Tags()["scalars"])
    assert {"train/loss", "train/acc", "val/loss", "val/acc", "test/acc"} <= tags
    assert {"sparsity/penalty", "sparsity/receded_0.01", "sparsity/receded_0.1"} <= tags
    (test_acc,) = events.Scalars("test/acc")
    assert test_acc.value == pytest.approx(summary(trained)["test_acc"], abs=1e-6)


def test_same_command_same_figures(command: Callable, trained: Path, pruned: Path) -> None:
    assert command("train", *DIGITS, "hydra.run.dir=again").status == 0
    again, before = summary(Path("again")), summary(trained)
    assert again["test_acc"] == before["test_acc"]
    weights = [
        torch.load(d / "checkpoints/best.ckpt")["state_dict"] for d in (trained, "again" / Path())
    ]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert command("prune", "checkpoint=again", *SHORT, "hydra.run.dir=small").status == 0
    again, before = summary(Path("small")), summary(pruned)
    keys = ("acc_dense", "acc_pruned", "acc_finetuned", "kept", "macs_pruned")
    assert [again[key] for key in keys] == [before[key] for key in keys]


def test_prune_prints_the_table(command: Callable, trained: Path) -> None:
    out = command("prune", f"checkpoint={trained}", *SHORT, "hydra.run.dir=small").out
    for word in ("test accuracy", "parameters", "MACs", "channels", "dense", "fine-tuned"):
        assert word in out
    for figure in ("269,034", "336", "168"):
        assert figure in out


def test_sweep(command: Callable, trained: Path) -> None:
    finished = command(
        "prune", "-m", f"checkpoint={trained}", "prune.ratio=0.3,0.7", "hydra.sweep.dir=s", *SHORT
    )
    assert finished.status == 0
    assert [summary(Path(f"s/prune.ratio-{r}"))["ratio"] for r in (0.3, 0.7)] == [0.3, 0.7]


def test_divergence_stops_the_run(command: Callable) -> None:
    settings = ("optimizer.lr=1e30", "trainer.limit_train_batches=5", "hydra.run.dir=run")
    finished = command("train", *DIGITS, *settings)
    assert finished.status == 2
    assert "the loss is not finite since step" in finished.err
    assert "learning rates now: 1e+28, 1e+29" in finished.err
    assert not list(Path("run/checkpoints").glob("*"))


def test_validation_every_second_epoch(command: Callable) -> None:
    settings = ("trainer.max_epochs=4", "trainer.check_val_every_n_epoch=2", "hydra.run.dir=run")
    assert command("train", *DIGITS, *settings).status == 0
    found = summary(Path("run"))
    assert found["epochs"] == 4
    assert found["best_epoch"] in (1, 3)


def test_any_label_for_the_data(command: Callable) -> None:
    assert command("train", *DIGITS, "data.name=my digits", "hydra.run.dir=run").status == 0
    assert command("prune", "checkpoint=run", *SHORT, "hydra.run.dir=small").status == 0
    assert summary(Path("small"))["dataset"] == "my digits"


def test_paper_protocol_picks_on_the_test_set(command: Callable) -> None:
    assert command("train", *DIGITS, "protocol=paper", "hydra.run.dir=run").status == 0
    events = EventAccumulator("run").Reload()
    assert summary(Path("run"))["test_acc"] == pytest.approx(
        events.Scalars("val/acc")[0].value, abs=1e-6
    )


def test_own_network_by_target(
    command: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_nets.py").write_text(NET)
    monkeypatch.syspath_prepend(tmp_path)
    net = ("arch=custom", "arch._target_=my_nets.Net", "+arch.width=12")
    assert command("train", "data=digits", *net, *SHORT, "hydra.run.dir=run").status == 0
    assert summary(Path("run"))["arch"] == "Net"
    refused = command("prune", "checkpoint=run", *SHORT, "hydra.run.dir=small")
    assert "allow=[my_nets.Net]" in refused.err
    allowed = command(
        "prune", "checkpoint=run", "allow=[my_nets.Net]", *SHORT, "hydra.run.dir=small"
    )
    assert allowed.status == 0, allowed.err
    assert summary(Path("small"))["kept"] == {"bn": 6}


def test_torchvision_network(command: Callable) -> None:
    net = ("arch=custom", "arch._target_=torchvision.models.mobilenet_v3_small")
    assert command("train", "data=digits", *net, *SHORT, "hydra.run.dir=run").status == 0
    assert command("prune", "checkpoint=run", *SHORT, "hydra.run.dir=small").status == 0
    found = summary(Path("small"))
    assert found["arch"] == "mobilenet_v3_small"
    assert found["params_pruned"] < found["params_dense"]


def choices(group: str) -> list[str]:
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


@pytest.mark.parametrize("group", ["arch", "method", "data", "trainer", "protocol", "optimizer"])
@pytest.mark.parametrize("command_name", ["train", "prune"])
def test_every_choice_composes(command_name: str, group: str) -> None:
    for choice in choices(group):
        if command_name == "prune" and group in ("arch", "method"):
            continue
        if choice in ("in_memory", "custom") or (command_name, choice) == ("train", "as_trained"):
            continue
        extra = ["checkpoint=x"] if command_name == "prune" else []
        extra += ["arch.model_name=resnet50d"] if choice == "timm" else []
        extra += ["arch.name=resnet18"] if choice == "torchvision" else []
        compose_config(command_name, [f"{group}={choice}", *extra])


@pytest.mark.parametrize(
    ("method", "arch", "reg_weight", "shift"),
    [
        ("rni", "vgg16", 1e-3, 3),
        ("rni", "resnet56", 1e-4, 0),
        ("l1", "vgg16", 1e-4, None),
        ("l1", "resnet56", 1e-5, None),
    ],
)
def test_papers_hyper_parameters(
    method: str, arch: str, reg_weight: float, shift: float | None
) -> None:
    config = compose_config("train", [f"method={method}", f"arch={arch}"])
    assert config.method.reg_weight == reg_weight
    assert config.method.get("shift") == shift
    assert config.trainer.max_epochs == 160
    assert config.data.name == "cifar10"
    given = compose_config("train", [f"method={method}", f"arch={arch}", "method.reg_weight=0.5"])
    assert given.method.reg_weight == 0.5


def test_unknown_keys_do_not_compose() -> None:
    with pytest.raises(ConfigError, match="reg_wieght"):
        compose_config("train", ["method.reg_wieght=1"])


def test_help_lists_the_groups(tmp_path: Path) -> None:
    done = run_python(str(ROOT / "train.py"), "--help", cwd=tmp_path)
    assert done.status == 0
    assert "method: l1, polarization, rni, ucs" in done.out


@pytest.mark.parametrize(
    "flag", ["--config-dir=mine", "--config-dir mine", "hydra.searchpath=[file://mine]"]
)
def test_help_knows_ones_own_choices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "method").mkdir(parents=True)
    (tmp_path / "mine" / "method" / "lasso.yaml").write_text("_target_: my.Lasso\nweight: 0.25\n")
    said = helping.of_command("train", ["--help", *flag.split(), "method=lasso", "seed=7"])
    assert "method: l1, lasso, polarization, rni, ucs" in said
    for line in ("  weight: 0.25", "seed: 7", "  split_seed: ${seed}"):
        assert f"\n{line}\n" in said
    with pytest.raises(ConfigError, match="lasso is unknown; allowed: l1, polarization, rni, ucs"):
        helping.of_command("train", ["--help", "method=lasso"])
    for others in (["-m", "method=rni,l1"], ["--cfg", "job"], ["-cn", "train"], ["--resolve"]):
        assert "method: l1, polarization, rni" in helping.of_command("train", ["-h", *others])
    with pytest.raises(ConfigError, match="other is not a directory"):
        helping.of_command("train", ["--config-dir=other", "--help"])


@pytest.mark.slow
def test_wheel_works_anywhere(tmp_path: Path) -> None:
    """Built, unpacked and used from another directory, without the checkout on the path."""
    built = run_python(
        "-m", "pip", "wheel", "--no-deps", "-q", "-w", str(tmp_path / "w"), str(ROOT)
    )
    assert built.status == 0, built.err
    (wheel,) = (tmp_path / "w").glob("*.whl")
    run_python("-m", "zipfile", "-e", str(wheel), str(tmp_path / "site"))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    code = (
        "import sys; from rni_pl import cli, config; "
        f"assert config.config_dir().startswith({str(tmp_path)!r}); "
        f"sys.argv = ['rni-train', *{[*DIGITS, 'hydra.run.dir=run']!r}]; cli.train()"
    )
    done = run_python("-c", code, cwd=elsewhere, PYTHONPATH=str(tmp_path / "site"))
    assert done.status == 0, done.err
    assert math.isfinite(summary(elsewhere / "run")["test_acc"])


@pytest.mark.parametrize("name", ["export", "benchmark"])
def test_tools_warn_in_one_line(
    command: Callable, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    said = []

    def run(_: object) -> None:
        said.append(warnings.formatwarning("two\nlines", UserWarning, "some.py", 1))

    monkeypatch.setattr(warnings, "formatwarning", lambda *_: "")
    monkeypatch.setattr({"export": exporting, "benchmark": comparing}[name], "run", run)
    assert command(name, "checkpoint=x", *["output=x.onnx"] * (name == "export")).status == 0
    assert said == ["warning: two lines\n"]

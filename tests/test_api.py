"""The paper's workflow in Python, and the plain functions."""

import copy
from pathlib import Path

import pytest
import torch
from conftest import SHORT
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.version import VersionBase
from left_by_runs import summary
from torch import nn

import rni_pl
from rni_pl import models
from rni_pl.errors import CheckpointError, ConfigError
from rni_pl.regularisers import l1_penalty, rni_penalty
from rni_pl.runs.spec import ModelSpec

QUICK = ["trainer.limit_train_batches=3", "trainer.enable_model_summary=false"]
COMMON = {"dataset": "digits", "batch_size": 16, "device": "cpu"}
FEW = {**COMMON, "epochs": 1, "overrides": QUICK}
SETTINGS = {**COMMON, "epochs": 2, "lr": 0.05, "seed": 3}


def test_train_and_prune_finetune(tmp_path: Path) -> None:
    model, logs = rni_pl.train(
        **SETTINGS, arch="resnet20", method="rni", reg_weight=1e-3, b=0.5,
        run_dir=tmp_path / "run", overrides=QUICK,
    )  # fmt: skip
    assert not model.training
    assert next(model.parameters()).device.type == "cpu"
    assert len(logs["test_acc"]) == 2
    assert all(0 <= acc <= 1 for acc in logs["test_acc"])
    assert logs["val_acc"][logs["best_epoch"]] == max(logs["val_acc"])
    assert logs["summary"]["test_acc"] == logs["test_acc"][logs["best_epoch"]]
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(x), rni_pl.load_model(tmp_path / "run")(x))

    before = copy.deepcopy(model.state_dict())
    small, logs = rni_pl.prune_finetune(
        model, **SETTINGS, method="rni", prune_pc=0.5, run_dir=tmp_path / "small", overrides=QUICK
    )
    assert len(logs["test_acc"]) == 2
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert logs["summary"]["channels_pruned"] == 168
    assert not logs["summary"]["pruned_before"]
    assert logs["summary"]["acc_dense"] > 0
    assert torch.equal(small(x), rni_pl.load_model(tmp_path / "small")(x))

    smaller, logs = rni_pl.prune_finetune(
        small, **SETTINGS, method="rni", prune_pc=0.5, run_dir=tmp_path / "less", overrides=QUICK
    )
    assert logs["summary"]["channels_dense"] == 168
    assert logs["summary"]["pruned_before"]
    assert torch.equal(smaller(x), rni_pl.load_model(tmp_path / "less")(x))


def test_epochs_that_were_validated() -> None:
    _, logs = rni_pl.train(
        **{**SETTINGS, "epochs": 4}, arch="resnet20",
        overrides=[*QUICK, "trainer.check_val_every_n_epoch=2"],
    )  # fmt: skip
    assert logs["epoch"] == [1, 3]
    best = logs["epoch"].index(logs["best_epoch"])
    assert logs["val_acc"][best] == max(logs["val_acc"])


def test_networks_pruned_or_converted_elsewhere_save_what_loads(tmp_path: Path) -> None:
    model, _ = rni_pl.train("digits", "resnet20", "l1", epochs=1, batch_size=16, overrides=QUICK)
    pruned, _ = rni_pl.prune(model, torch.zeros(1, 3, 32, 32), 0.4)
    for name, given in (("bn", pruned), ("sigbn", rni_pl.convert_batchnorm(pruned))):
        small, logs = rni_pl.prune_finetune(
            given, "digits", "l1", 0.02, epochs=1, batch_size=16, run_dir=tmp_path / name,
            overrides=QUICK,
        )  # fmt: skip
        assert logs["summary"]["pruned_before"]
        x = torch.randn(2, 3, 32, 32)
        assert torch.equal(small(x), rni_pl.load_model(tmp_path / name)(x))


def test_a_hydra_that_was_there_before_is_there_afterwards(tmp_path: Path) -> None:
    (tmp_path / "theirs.yaml").write_text("a: 1\n")
    with initialize_config_dir(str(tmp_path), version_base="1.2"):
        version, theirs = VersionBase.instance().getbase(), GlobalHydra.instance()
        model, _ = rni_pl.train("digits", "resnet20", epochs=0)
        rni_pl.prune_finetune(model, "digits", "l1", epochs=0)
        with pytest.raises(ConfigError):
            rni_pl.train("digits", "nosuch")
        assert compose("theirs") == {"a": 1}
        assert (VersionBase.instance().getbase(), GlobalHydra.instance()) == (version, theirs)
    assert not GlobalHydra.instance().is_initialized()
    rni_pl.train("digits", "resnet20", epochs=0)
    assert not GlobalHydra.instance().is_initialized()


def test_same_figures_as_the_command(trained: Path) -> None:
    _, logs = rni_pl.train(
        "digits", "resnet20", "rni", epochs=1, batch_size=16, overrides=SHORT[1:3]
    )
    assert logs["summary"]["test_acc"] == summary(trained)["test_acc"]


def test_a_network_that_was_changed_is_not_described_as_it_was(tmp_path: Path) -> None:
    model = rni_pl.models.resnet20()
    model.model_spec = ModelSpec({"_target_": "rni_pl.models.resnet20"}, 10)
    same, _ = rni_pl.prune_finetune(model, **FEW, run_dir=tmp_path / "same")
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(rni_pl.load_model(tmp_path / "same")(x), same(x))
    for block in (*model.layer1, *model.layer2, *model.layer3):
        block.relu = nn.SiLU()
    with pytest.warns(UserWarning, match="was changed since it was built"):
        small, _ = rni_pl.prune_finetune(model, **FEW, run_dir=tmp_path / "small")
    with pytest.raises(CheckpointError, match=r"load_model\(path, model="):
        rni_pl.load_model(tmp_path / "small")
    assert torch.equal(rni_pl.load_model(tmp_path / "small", model=model)(x), small(x))


def test_a_network_given_in_python_loads_with_the_unpruned_one(tmp_path: Path) -> None:
    def build() -> nn.Module:
        return rni_pl.convert_batchnorm(models.resnet20())

    with pytest.warns(UserWarning, match="do not say how to build the network"):
        small, _ = rni_pl.prune_finetune(build(), **FEW, run_dir=tmp_path)
    given, x = models.resnet20(), torch.randn(2, 3, 32, 32)  # BatchNorm becomes SigBN by itself
    before = copy.deepcopy(given.state_dict())
    for network in (build(), given):
        again = rni_pl.load_model(tmp_path, model=network)
        assert torch.equal(again(x), small(x))
    assert all(torch.equal(value, before[key]) for key, value in given.state_dict().items())
    for other in (models.resnet32(), models.vgg16()):
        with pytest.raises(CheckpointError, match="do not fit"):
            rni_pl.load_model(tmp_path, model=other)
    with pytest.raises(TypeError, match="model must be a network, not 'resnet20'"):
        rni_pl.load_model(tmp_path, model="resnet20")  # type: ignore[arg-type]


def test_what_a_checkpoint_says_of_building_is_dropped_where_a_network_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rni_pl.prune_finetune(models.resnet20(), **FEW, run_dir="run")
    file = Path("run/checkpoints/best.ckpt")
    contents = torch.load(file, weights_only=True)
    contents["hyper_parameters"]["spec"]["arch"] = {"_target_": "os.mkdir", "path": "proof"}
    torch.save(contents, file)
    model = rni_pl.load_model("run", model=models.resnet20())
    rni_pl.prune_finetune(model, **FEW, run_dir="again")
    assert not Path("proof").exists()


def test_what_is_no_network_to_train_is_refused() -> None:
    with pytest.raises(TypeError, match=r"not 'runs/digits'; load_model"):
        rni_pl.prune_finetune("runs/digits", **FEW)  # type: ignore[arg-type]
    for model in (nn.Sequential(), models.resnet20().requires_grad_(False)):
        with pytest.raises(ConfigError, match="no parameter that is trained"):
            rni_pl.prune_finetune(model, **FEW)
    with pytest.raises(ConfigError, match="method=foo is unknown; allowed: l1, polarization, rni"):
        rni_pl.prune_finetune(models.resnet20(), method="foo", **FEW)
    assert issubclass(ConfigError, rni_pl.RniError)


@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
def test_true_precisions(precision: str, tmp_path: Path) -> None:
    """With Lightning's summary, which runs an example, and all that touches images."""
    overrides = [QUICK[0], f"trainer.precision={precision}"]
    settings = {**COMMON, "epochs": 1, "overrides": overrides}
    model, logs = rni_pl.train(**settings, arch="resnet20")
    assert logs["summary"]["precision"] == precision
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    settings["overrides"] = [
        *overrides, "prune.absorb=true", "prune.recalibrate=1", "distill.weight=0.5",
        "prune.measure_latency=true",
    ]  # fmt: skip
    small, logs = rni_pl.prune_finetune(model, **settings, run_dir=tmp_path)
    assert logs["summary"]["channels_pruned"] == pytest.approx(168, abs=8)  # bfloat16 has ties
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(rni_pl.load_model(tmp_path)(x), small(x))


def test_any_network_can_be_pruned() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(12, 10),
    )  # fmt: skip
    nn.init.uniform_(net[1].weight)
    small, logs = rni_pl.prune_finetune(
        net, "digits", "ucs", 0.5, epochs=1, batch_size=16, overrides=QUICK
    )
    assert small[0].out_channels == 6
    assert logs["summary"]["scope"] == "local"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"method": "lasso"}, "method=lasso"),
        ({"arch": "alexnet"}, "arch=alexnet"),
        ({"dataset": "mnist"}, "data=mnist"),
        ({"reg_weight": -1.0}, "method.reg_weight=-1.0"),
        ({"epochs": -1}, "trainer.max_epochs=-1"),
        ({"device": "abacus"}, "abacus"),
        ({"overrides": ["nonsense=1"]}, "nonsense"),
        ({"overrides": ["resume=auto"]}, "resume=auto is for the commands"),
        ({"method": "l1", "b": 1.0}, "method.shift is unknown"),
        ({"method": "ucs", "reg_weight": 0.1}, "method.reg_weight is unknown"),
        ({"overrides": ["hydra.run.dir=runs/x"]}, "in Python, run_dir=... keeps a run"),
        ({"overrides": ["launch=joblib"]}, "launch=joblib is for the sweeps"),
    ],
)
def test_train_refuses(settings: dict, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        rni_pl.train(**{"dataset": "digits", "arch": "resnet20", "epochs": 1, **settings})
    assert words in str(caught.value)


def test_overrides_are_a_list() -> None:
    settings = {"dataset": "digits", "epochs": 1, "overrides": "seed=1"}
    with pytest.raises(TypeError, match="overrides must be a list, not 'seed=1'"):
        rni_pl.train(**settings)
    with pytest.raises(TypeError, match="overrides must be a list, not 'seed=1'"):
        rni_pl.prune_finetune(models.resnet20(), **settings)


@pytest.mark.parametrize("ratio", [1.0, -0.1, float("nan"), "half"])
def test_prune_finetune_refuses_ratios(ratio: float) -> None:
    with pytest.raises(ConfigError, match=r"prune\.ratio"):
        rni_pl.prune_finetune(models.resnet20(), "digits", prune_pc=ratio, epochs=1)


def test_wrong_number_of_classes_is_refused() -> None:
    with pytest.raises(ConfigError, match="10 classes"):
        rni_pl.prune_finetune(models.resnet20(num_classes=7), "digits", epochs=1)


def test_plain_functions() -> None:
    gamma = torch.randn(6, requires_grad=True)
    assert rni_pl.rni_penalty is rni_penalty
    assert rni_penalty(gamma, shift=1.0).shape == l1_penalty(gamma).shape == ()
    (rni_penalty(gamma) + l1_penalty(gamma)).backward()
    assert gamma.grad.abs().min() > 0
    pruned, report = rni_pl.prune(models.vgg16(norm="sigbn"), torch.zeros(1, 3, 32, 32), 0.5)
    assert len(report.kept) == 13
    assert pruned(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_one_seed_gives_the_same_start_for_every_method(tmp_path: Path) -> None:
    tiny = [*QUICK, "optimizer.lr=1e-30", "optimizer.weight_decay=0"]
    weights = []
    for method in ("rni", "l1", "ucs"):
        model, _ = rni_pl.train(
            "digits", "resnet20", method, epochs=1, batch_size=16, overrides=tiny
        )
        weights.append([m.weight for m in model.modules() if isinstance(m, nn.Conv2d)])
    for other in weights[1:]:
        assert all(torch.equal(a, b) for a, b in zip(weights[0], other, strict=True))

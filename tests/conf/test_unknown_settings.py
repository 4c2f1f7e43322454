"""Settings that nothing reads are refused, with the nearest that there is."""

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import SHORT

from rni_pl.config import compose_config
from rni_pl.errors import ConfigError
from rni_pl.naming import SETTINGS
from rni_pl.runs.spec import ModelSpec
from rni_pl.training.inherit import data_of

NEEDED = {
    "train": [],
    "prune": ["checkpoint=x"],
    "export": ["checkpoint=x", "output=x.onnx"],
    "benchmark": ["checkpoint=x"],
}


@pytest.mark.parametrize("name", NEEDED)
def test_what_is_known_at_the_top_is_what_there_is(name: str) -> None:
    config = compose_config(name, NEEDED[name])
    assert set(config) - {"command", "overrides"} == set(SETTINGS[name])


@pytest.mark.parametrize(
    ("name", "override", "words"),
    [
        ("train", "epochs=3", "nearest setting is trainer.max_epochs; allowed: arch, method"),
        ("train", "lr=0.5", "nearest setting is optimizer.lr"),
        ("train", "dataset=cifar10", "nearest setting is data;"),
        ("train", "reg_weight=1", "nearest setting is method.reg_weight"),
        ("train", "protocl=paper", "nearest setting is protocol"),
        ("train", "batch=64", "nearest setting is data.batch_size"),
        ("train", "foo/bar=1", "foo/bar is unknown; allowed"),
        ("train", "prune.ratio=0.5", "is a setting of prune.py, not of train.py"),
        ("prune", "ratio=0.5", "nearest setting is prune.ratio"),
        ("benchmark", "engine=onnx", "nearest setting is engines"),
        ("export", "batch=1", "batch is a setting of rni_pl.benchmark, not of rni_pl.export"),
    ],
)
def test_misspelt_at_the_top(name: str, override: str, words: str) -> None:
    for given in (override, f"+{override}"):
        with pytest.raises(ConfigError, match=words) as refused:
            compose_config(name, [*NEEDED[name], given])
        assert "+" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "override", "words"),
    [
        ("train", "trainer.epochs=3", r"nearest setting is trainer\.max_epochs; allowed under tr"),
        ("train", "arch.width=3", r"arch\.width is unknown; allowed.*: \+arch\.width=3"),
        ("train", "optimizer.lrr=3", r"nearest setting is optimizer\.lr; allowed.*momentum"),
        ("train", "seed.x=3", r"seed\.x is unknown; allowed: arch"),
        ("prune", "arch=resnet56", r"arch is no group of this command, but of train\.py"),
        ("prune", "+arch=resnet56", r"arch is a setting of train\.py, not of prune\.py"),
        ("prune", "+method=l1", r"method is a setting of train\.py, not of prune\.py"),
    ],
)
def test_misspelt_within_and_of_another_command(name: str, override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        compose_config(name, [*NEEDED[name], override])


def test_what_other_values_refer_to_is_read() -> None:
    config = compose_config("train", ["+base.lr=0.3", "optimizer.lr=${base.lr}", "+arch.width=3"])
    assert config.optimizer.lr == 0.3


def test_a_value_for_the_run_directory_alone(command: Callable) -> None:
    given = ("arch=resnet20", "data=digits", *SHORT, "+tag=mine", "hydra.run.dir='runs/${tag}'")
    assert command("train", *given).status == 0
    assert Path("runs/mine/summary.json").is_file()


@pytest.mark.parametrize("given", ["data.image_size=16", "+data.foo=1"])
def test_settings_that_the_data_of_the_training_have_not(
    command: Callable, trained: Path, given: str
) -> None:
    refused = command("prune", f"checkpoint={trained}", *SHORT, given)
    assert refused.status == 2
    key = given.lstrip("+").partition("=")[0]
    assert f"{key} is no setting of data=digits, which the network was trained on" in refused.err
    assert "allowed: data.name, data.choice" in refused.err


@pytest.mark.parametrize("name", ["export", "benchmark"])
def test_words_that_are_no_settings(command: Callable, name: str) -> None:
    refused = command(name, "A", "B")
    assert refused.status == 2
    assert refused.err.startswith("error: 'A' is no setting; settings are given as KEY=VALUE")


def test_a_file_of_data_without_its_name(command: Callable, trained: Path) -> None:
    file = Path("mine/data/own.yaml")
    file.parent.mkdir(parents=True)
    lines = (
        "defaults: [in_memory, _self_]",
        "name: own",
        "source: {_target_: rni_pl.data.digits, _partial_: true}",
    )
    file.write_text("\n".join(lines))
    refused = command("train", "--config-dir=mine", "data=own", "arch=resnet20", *SHORT)
    assert refused.status == 2
    assert "data.choice is missing" in refused.err
    assert "in a file of data it is the name of that file" in refused.err
    config = compose_config("prune", [f"checkpoint={trained}"])
    with pytest.raises(ConfigError, match="does not say what data it was trained on"):
        data_of(config, ModelSpec(arch={}, num_classes=10, data={"choice": "???"}))

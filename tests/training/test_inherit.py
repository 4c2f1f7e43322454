"""What pruning takes over from training: data, split and normalisation; what it says of them."""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SHORT
from left_by_runs import summary
from PIL import Image

import rni_pl
from rni_pl.config import compose_config
from rni_pl.runs import checkpoint
from rni_pl.training import fitting, inherit


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Bright pictures in classes called as the digits."""
    draws = np.random.default_rng(0)
    for split in ("train", "test"):
        for digit in range(10):
            place = tmp_path / "bright" / split / str(digit)
            place.mkdir(parents=True)
            for i in range(4):
                pixels = draws.integers(200, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{i}.png")
    return tmp_path / "bright"


def test_the_network_says_what_it_was_fine_tuned_on(
    command: Callable, trained: Path, folder: Path
) -> None:
    settings = ("data=image_folder", f"data.root={folder}", *SHORT, "hydra.run.dir=run")
    finished = command("prune", f"checkpoint={trained}", *settings)
    assert finished.status == 0, finished.err
    spec = rni_pl.load_model("run").model_spec
    data = fitting.make_data(compose_config("train", settings[:2]))
    assert spec.data["name"] == summary(Path("run"))["dataset"] == "image_folder"
    assert spec.mean == pytest.approx(list(data.mean))
    assert spec.std == pytest.approx(list(data.std))
    assert min(spec.mean) > 0.8


@pytest.mark.parametrize("way", ["data=as_trained", "data=digits", "python"])
def test_pixels_are_normalised_as_in_training(command: Callable, way: str) -> None:
    ours = ("data.mean=[0.1,0.2,0.3]", "data.std=[0.4,0.5,0.6]")
    start = ("arch=resnet20", "data=digits", *ours, *SHORT, "hydra.run.dir=dense")
    assert command("train", *start).status == 0
    if way == "python":
        dense = rni_pl.load_model("dense")
        small, _ = rni_pl.prune_finetune(dense, "digits", epochs=1, overrides=SHORT[1:])
    else:
        end = ("checkpoint=dense", way, *SHORT, "hydra.run.dir=small")
        assert command("prune", *end).status == 0
        small = rni_pl.load_model("small")
    assert small.model_spec.mean == pytest.approx([0.1, 0.2, 0.3])
    assert small.model_spec.std == pytest.approx([0.4, 0.5, 0.6])


def test_a_normalisation_that_is_given_counts(trained: Path) -> None:
    given = compose_config("prune", ["checkpoint=x", "data=digits", "data.mean=[0.5,0.5,0.5]"])
    spec = rni_pl.load_model(trained).model_spec
    found = inherit.pixels_and_split_of(given, spec).data
    assert found.mean == [0.5, 0.5, 0.5]
    assert found.std == spec.std


def test_normalisation_is_that_of_the_training(command: Callable, folder: Path) -> None:
    """Also where what was measured for it is elsewhere, or has changed since."""
    settings = ("arch=resnet20", "data=image_folder", f"data.root={folder}", *SHORT)
    assert command("train", *settings, "hydra.run.dir=dense").status == 0
    for file in (folder / "train").glob("*/0.png"):
        Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(file)
    done = command("prune", "checkpoint=dense", *SHORT, "hydra.run.dir=small")
    assert done.status == 0, done.err
    dense, small = (rni_pl.load_model(run).model_spec for run in ("dense", "small"))
    assert small.mean == dense.mean
    assert small.std == dense.std


def test_a_network_is_not_validated_on_what_it_was_trained_on(
    command: Callable, trained: Path
) -> None:
    spec = checkpoint.load_model(trained).model_spec
    for setting, split in (("seed=7", 0), ("data.split_seed=5", 5)):
        settings = [f"checkpoint={trained}", "data=digits", setting]
        cfg = inherit.data_of(compose_config("prune", settings), spec)
        assert cfg.data.split_seed == split
    other = compose_config("prune", [f"checkpoint={trained}", "data=cifar10", "seed=7"])
    assert inherit.data_of(other, spec).data.split_seed == 7


@pytest.mark.parametrize("data", [[], ["data=digits"]])
def test_more_images_for_validation_are_said(trained: Path, data: list[str]) -> None:
    spec = checkpoint.load_model(trained).model_spec
    settings = [f"checkpoint={trained}", *data]
    with pytest.warns(UserWarning, match="trained with 0.1, so that images it was trained on"):
        inherit.data_of(compose_config("prune", [*settings, "data.val_fraction=0.2"]), spec)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inherit.data_of(compose_config("prune", [*settings, "data.val_fraction=0.1"]), spec)


def test_a_validation_split_of_a_network_that_had_none_is_said(trained: Path) -> None:
    spec = checkpoint.load_model(trained).model_spec
    spec.data["val_fraction"] = 0.0
    settings = [f"checkpoint={trained}", "data.val_fraction=0.1"]
    with pytest.warns(UserWarning, match="val_fraction=0.1: the network was trained with 0.0"):
        inherit.data_of(compose_config("prune", settings), spec)


def test_a_network_given_in_python_is_not_validated_on_what_it_was_trained_on(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, loaded = [], []
    make_data, load = fitting.make_data, fitting._loaded
    monkeypatch.setattr(
        fitting, "make_data", lambda *args: made.append(make_data(*args)) or made[-1]
    )
    monkeypatch.setattr(fitting, "_loaded", lambda node: loaded.append(load(node)) or loaded[-1])
    model = rni_pl.load_model(trained)
    overrides = ["trainer.limit_train_batches=3", "trainer.enable_model_summary=false"]
    rni_pl.prune_finetune(
        model, "digits", epochs=1, seed=9, batch_size=16, device="cpu", overrides=overrides
    )
    assert len(loaded) == 1, "the data were loaded twice"
    own = make_data(compose_config("train", ["data=digits", "seed=0"]))
    assert all(torch.equal(data.val.images, own.val.images) for data in made)
    assert made


MY_DATA = """
import torch
from rni_pl.data import BatchLoader, ClassificationData, Split

class Mine(ClassificationData):
    def __init__(self, name, batch_size, eval_batch_size, seed, split_seed):
        super().__init__(batch_size, eval_batch_size, seed, split_seed)

    def load(self):
        labels = torch.arange(64) % 2
        images = (labels * 255).to(torch.uint8).view(-1, 1, 1, 1).expand(64, 3, 32, 32)
        self.image_shape, self.mean, self.std = (3, 32, 32), [0.5] * 3, [0.5] * 3
        images = Split(images.contiguous(), labels)
        return images, images, ("black", "white")

    def loader(self, images, batch_size, train=False, shared=True):
        share = self.share() if shared else (0, 1)
        return BatchLoader(images, batch_size, self.mean, self.std, None, self.seed, "cpu", *share)
"""
MY_CONF = """
_target_: my_data.Mine
name: mine
choice: mine
batch_size: 8
eval_batch_size: 32
seed: ${seed}
split_seed: ${seed}
"""


def test_a_data_module_of_ones_own(
    command: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_data.py").write_text(MY_DATA)
    (tmp_path / "my_conf" / "data").mkdir(parents=True)
    (tmp_path / "my_conf" / "data" / "mine.yaml").write_text(MY_CONF)
    monkeypatch.syspath_prepend(tmp_path)
    mine = ("--config-dir", "my_conf", "trainer.max_epochs=1")
    trained = command("train", *mine, "arch=resnet20", "data=mine", "hydra.run.dir=dense")
    assert trained.status == 0, trained.err
    pruned = command("prune", *mine, "checkpoint=dense", "prune.absorb=true", "hydra.run.dir=small")
    assert pruned.status == 0, pruned.err
    assert rni_pl.load_model("small").model_spec.classes == ["black", "white"]
    other = command("train", "data=digits", "data._target_=torch.nn.Identity", "arch=resnet20")
    assert "data._target_=torch.nn.Identity makes no ClassificationData" in other.err

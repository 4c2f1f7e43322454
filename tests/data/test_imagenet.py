"""The ImageNet row, end to end on a small folder in ImageNet's layout."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from image_folders import photo

import rni_pl
from rni_pl.config import compose_config
from rni_pl.data import FolderData
from rni_pl.errors import DataError

CLASSES = ["n01440764", "n01443537", "n01484850", "n01491361"]
TINY = (
    "data.root=imagenet",
    "data.image_size=32",
    "data.batch_size=8",
    "data.workers=0",
    "data.val_fraction=0.2",
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=2",
    "trainer.enable_model_summary=false",
)


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    """Four classes with photographs of different sizes, as JPEG."""
    sizes = np.random.default_rng(0)
    for part, count in (("train", 10), ("val", 3)):
        for name in CLASSES:
            for i in range(count):
                photo(tmp_path / "imagenet" / part / name / f"{i}.JPEG", *sizes.integers(40, 90, 2))
    return tmp_path / "imagenet"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "method"),
    [("resnet50", "rni"), ("resnet50", "l1"), ("resnet50", "ucs"), ("vgg16_bn", "rni")],
)
def test_train_and_prune(command: Callable, imagenet: Path, arch: str, method: str) -> None:
    small = f"+arch.{'width_per_group=8' if arch == 'resnet50' else 'dropout=0.1'}"
    experiment = ("experiment=imagenet", f"arch.name={arch}", f"method={method}", small)
    finished = command("train", *experiment, *TINY, "hydra.run.dir=run")
    assert finished.status == 0, finished.err
    ratio = ("prune.ratio=0.5", "prune.recalibrate=1", "hydra.run.dir=small")
    finished = command("prune", "checkpoint=run", *TINY[4:], *ratio)
    assert finished.status == 0, finished.err
    found = json.loads(Path("small/summary.json").read_text())
    assert (found["dataset"], found["arch"], found["method"]) == ("imagenet", arch, method)
    assert found["params_pruned"] < found["params_dense"]
    assert rni_pl.load_model("small")(torch.zeros(1, 3, 32, 32)).shape == (1, 4)


def test_sizes_and_values(imagenet: Path) -> None:
    data = FolderData("imagenet", str(imagenet), 32, workers=0, batch_size=8, val_fraction=0.2)
    data.setup()
    assert (len(data.train), len(data.val), len(data.test)) == (32, 8, 12)
    assert data.classes == CLASSES
    assert data.val.labels.bincount().tolist() == [2, 2, 2, 2]
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (8, 3, 32, 32)
    assert labels.unique().numel() > 1
    assert -3 < images.min() < -1 < 1 < images.max() < 3
    first, again = (list(data.calibration_batches(2)) for _ in range(2))
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(first, again, strict=True))
    first, again = (next(iter(data.test_dataloader()))[0] for _ in range(2))
    assert torch.equal(first, again), "evaluation is not random"


def test_processes_share_every_batch(imagenet: Path) -> None:
    def batches(rank: int, world_size: int, training: bool, done: int = 0) -> list[list[int]]:
        data = FolderData(
            "imagenet", str(imagenet), 32, workers=0, seed=3, batch_size=5, eval_batch_size=5
        )
        data.setup()
        data.trainer = SimpleNamespace(global_rank=rank, world_size=world_size)
        loader = data.train_dataloader() if training else data.test_dataloader()
        loader.load_state_dict({"epoch": 1, "done": done})
        loader.sampler.set_epoch(1)
        return [labels.tolist() for _, labels in loader]

    for training in (True, False):
        whole = batches(0, 1, training)
        shares = [batches(rank, 2, training) for rank in (0, 1)]
        joined = [one + other for one, other in zip(*shares, strict=True)]
        assert joined == whole[: len(joined)]
        assert batches(0, 1, training, done=2) == whole[2:], "an interrupted epoch goes on"
        assert all(1 + training <= len(part) <= 3 for share in shares for part in share)
    assert sum(map(len, joined)) == 12  # evaluated: each image once
    assert batches(0, 1, True) != [sorted(batch) for batch in batches(0, 1, True)]


def test_faults_are_named(imagenet: Path) -> None:
    photo(imagenet / "val" / "n99999999" / "x.png")
    with pytest.raises(DataError, match="n99999999"):
        FolderData("imagenet", str(imagenet)).setup()
    with pytest.raises(DataError, match="does not exist"):
        FolderData("imagenet", "nowhere").setup()


def test_values_for_vgg_follow_the_method() -> None:
    config = compose_config("train", ["experiment=imagenet", "arch.name=vgg16_bn", "method=rni"])
    assert (config.method.reg_weight, config.method.shift) == (1e-3, 3)
    assert config.trainer.max_epochs == 90

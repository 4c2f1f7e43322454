"""Losses: cross-entropy, and learning from the unpruned network."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import SHORT
from torch import nn
from torch.nn import functional as F

from rni_pl.data import Split
from rni_pl.training.losses import CrossEntropy, Distillation


def test_loss_by_hand() -> None:
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    images, labels = torch.randn(5, 3, 2, 2), torch.tensor([0, 1, 2, 3, 0])
    logits = torch.randn(5, 4, requires_grad=True)
    with torch.no_grad():
        wanted = (teacher(images) / 2).softmax(1)
    expected = 0.7 * F.cross_entropy(logits, labels)
    found = (logits / 2).log_softmax(1)
    expected = expected + 0.3 * 4 * (wanted * (wanted.log() - found)).sum() / 5
    loss = Distillation(teacher, weight=0.3, temperature=2.0)(images, logits, labels)
    assert torch.allclose(loss, expected, rtol=1e-6)
    loss.backward()
    assert all(p.grad is None for p in teacher.parameters())


def test_weights_of_classes_do_not_depend_on_how_a_batch_is_split() -> None:
    logits, labels = torch.randn(6, 3), torch.tensor([0, 0, 0, 0, 1, 2])
    loss, none = CrossEntropy(0.1, torch.tensor([0.5, 2.0, 2.0])), torch.empty(0)
    by_hand = F.cross_entropy(
        logits, labels, torch.tensor([0.5, 2.0, 2.0]), reduction="none", label_smoothing=0.1
    )
    assert torch.allclose(loss(none, logits, labels), by_hand.mean())
    halves = [loss(none, logits[s], labels[s]) for s in (slice(0, 3), slice(3, 6))]
    assert torch.allclose(torch.stack(halves).mean(), by_hand.mean())


def test_balanced_weights_count_every_class_alike() -> None:
    labels = torch.tensor([0] * 6 + [1] * 2)
    data: Any = SimpleNamespace(train=Split(torch.zeros(8, 3, 2, 2), labels), num_classes=2)
    weights = CrossEntropy.of(data, class_weights="balanced").class_weights
    assert weights is not None
    assert weights[labels].sum() == 8
    assert weights[0] * 6 == weights[1] * 2


def test_weight_zero_is_the_cross_entropy() -> None:
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    images, logits, labels = torch.randn(5, 3, 2, 2), torch.randn(5, 4), torch.zeros(5).long()
    loss = Distillation(teacher, weight=0.0)(images, logits, labels)
    assert torch.allclose(loss, F.cross_entropy(logits, labels))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_teacher_takes_the_precision_of_the_images(dtype: torch.dtype) -> None:
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    images, logits = torch.randn(5, 3, 2, 2, dtype=dtype), torch.randn(5, 4, dtype=dtype)
    assert Distillation(teacher)(images, logits, torch.zeros(5).long()).isfinite()


def test_prune_with_distillation(command: Callable, trained: Path, pruned: Path) -> None:
    finished = command(
        "prune", f"checkpoint={trained}", "distill.weight=0.9", *SHORT, "hydra.run.dir=small"
    )
    assert finished.status == 0, finished.err
    found = json.loads(Path("small/summary.json").read_text())
    assert found["kept"] == json.loads((pruned / "summary.json").read_text())["kept"]
    weights = [
        torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for run in (Path("small"), pruned)
    ]
    assert weights[0].keys() == weights[1].keys(), "the teacher is no part of the checkpoint"
    assert not torch.equal(weights[0]["model.fc.weight"], weights[1]["model.fc.weight"])


@pytest.mark.parametrize("value", ["1.5", "-1", "nan"])
def test_weight_out_of_range(command: Callable, value: str) -> None:
    finished = command("prune", "checkpoint=x", f"distill.weight={value}")
    assert finished.status == 2
    assert "distill.weight" in finished.err

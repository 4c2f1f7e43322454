"""The reference implementation's figures, reproduced."""

import json
from pathlib import Path

import pytest
import torch

import rni_pl
from rni_pl import models
from rni_pl.norm import scaled_norms
from rni_pl.pruning import prune
from rni_pl.regularisers import RNI

GOLDEN = json.loads((Path(__file__).parent / "reference.json").read_text())
ARCHS = {"vgg16": models.vgg16, "resnet56": models.resnet56}


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("key", "expected"), GOLDEN["params"].items())
def test_parameter_counts(key: str, expected: int) -> None:
    arch, dataset, norm = key.split("_")
    model = ARCHS[arch](num_classes=int(dataset.removeprefix("cifar")), norm=norm)
    assert count(model) == expected


@pytest.mark.parametrize("case", GOLDEN["rni_penalty"], ids=lambda case: f"shift{case['shift']}")
def test_rni_penalty_and_gradient(case: dict) -> None:
    gamma = torch.tensor(case["weights"], dtype=torch.float64, requires_grad=True)
    penalty = rni_pl.rni_penalty(gamma, shift=case["shift"])
    penalty.backward()
    expected = torch.tensor(case["grad"], dtype=torch.float64)
    assert abs(penalty.item() - case["penalty_sum"]) < 1e-12
    assert gamma.grad is not None
    assert (gamma.grad - expected).abs().max() < 1e-12
    closed_form = RNI(reg_weight=1.0, shift=case["shift"]).gradient(gamma.detach())
    assert (closed_form - expected).abs().max() < 1e-12


@pytest.mark.parametrize(
    "case",
    GOLDEN["masks"],
    ids=lambda c: f"{c['arch']}-{c['bn']}-{c['ratio']}-{c['scope']}",
)
def test_masks_and_counts_after_removal(case: dict) -> None:
    model = ARCHS[case["arch"]](norm=case["bn"])
    norms = dict(scaled_norms(model))
    if case["arch"] == "resnet56":
        norms = {name: norm for name, norm in norms.items() if name.endswith("bn1") and "." in name}
    for norm, gamma in zip(norms.values(), GOLDEN["scales"][case["scales_ref"]], strict=True):
        norm.weight.data = torch.tensor(gamma)
    pruned, report = prune(model, torch.zeros(1, 3, 32, 32), case["ratio"], case["scope"])
    assert list(report.kept) == list(norms)
    assert list(report.kept.values()) == case["kept"]
    assert count(pruned) == case["params_after"]

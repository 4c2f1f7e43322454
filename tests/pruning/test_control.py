"""What stays is said: layers left alone, ratios and caps of their own, plans carried out later."""

import json
from typing import Any

import pytest
import torch
from conftest import run_python
from masking import randomise
from torch import nn

from rni_pl import models
from rni_pl.errors import PruningError
from rni_pl.pruning import prune

X = torch.zeros(1, 3, 32, 32)
SETTINGS: list[dict[str, Any]] = [
    {}, {"scope": "local"}, {"coupled": True}, {"round_to": 4}, {"target": "macs"},
    {"target": "params", "coupled": True}, {"importance": "l2"},
]  # fmt: skip


def resnet() -> nn.Module:
    return randomise(models.resnet20())


def shares(report: Any) -> dict[str, float]:
    return {name: 1 - len(kept) / report.widths[name] for name, kept in report.kept.items()}


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_ignored_layers_keep_all_channels(settings: dict[str, Any]) -> None:
    report = prune(resnet(), X, 0.5, ignore=["layer1", "layer3.*.conv1"], **settings)[1]
    for name in ("layer1.0.bn1", "layer1.2.bn1", "layer3.1.bn1"):
        assert "is in prune.ignore=layer" in report.skipped[name]
    assert "layer2.1.bn1" in report.kept


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_layers_have_ratios_of_their_own(settings: dict[str, Any]) -> None:
    ratios = {"layer1.0": 0.25, "layer1": 0.75, "layer2.2.bn1": 0}
    report = prune(resnet(), X, 0.5, ratios=ratios, min_channels=1, **settings)[1]
    found = shares(report)
    assert found["layer1.0.bn1"] == 0.25
    assert found["layer1.1.bn1"] == found["layer1.2.bn1"] == 0.75
    if "importance" not in settings:  # then the second pattern names no ranked layer
        assert found["layer2.2.bn1"] == 0


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_no_layer_loses_more_than_the_cap(settings: dict[str, Any]) -> None:
    free = shares(prune(resnet(), X, 0.7, min_channels=1, **settings)[1])
    capped = shares(prune(resnet(), X, 0.7, max_ratio=0.5, min_channels=1, **settings)[1])
    assert max(free.values()) > 0.5
    assert max(capped.values()) <= 0.5
    assert sum(capped.values()) > 0


def test_a_valley_leaves_ratios_of_their_own() -> None:
    model = resnet()
    for index, norm in enumerate(m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        with torch.no_grad():
            norm.weight.copy_(torch.linspace(0.9, 1.1, len(norm.weight)))
            half = len(norm.weight) // 2
            norm.weight[:half] = torch.linspace(1e-3, 2e-3, half) * (1 + index / 100)
    report = prune(model, X, "auto", ratios={"layer2.0": 0.25})[1]
    assert shares(report)["layer2.0.bn1"] == 0.25
    assert shares(report)["layer3.0.bn1"] == 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ignore": ["layer4"]}, "prune.ignore='layer4' matches no layer.*nearest: layer"),
        ({"ignore": "layer1"}, "allowed: a list"),
        ({"ratios": {"layer1.*.conv9": 0.5}}, "prune.ratios='layer1.*.conv9' matches no layer"),
        ({"ratios": {"layer1": 1.0}}, r"prune.ratios\['layer1'\]=1.0 is out of range"),
        ({"max_ratio": 1.5}, "prune.max_ratio=1.5 is out of range"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(PruningError, match=message):
        prune(resnet(), X, 0.5, **settings)


CARRY_OUT = """
import json, sys, torch
from rni_pl import models
from rni_pl.pruning import prune

model = models.resnet20()
model.load_state_dict(torch.load("weights.pt"))
plan = json.load(open("plan.json"))
pruned, report = prune(model, torch.zeros(1, 3, 32, 32), plan=plan)
assert report.ratio == "plan"
torch.save(pruned.state_dict(), "pruned.pt")
"""


@pytest.mark.parametrize("settings", [{}, {"coupled": True, "importance": "fpgm"}], ids=str)
def test_a_plan_is_carried_out_in_another_process(settings: dict[str, Any], tmp_path: Any) -> None:
    model = resnet()
    pruned, report = prune(model, X, 0.5, **settings)
    (tmp_path / "plan.json").write_text(json.dumps(report.plan))
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    done = run_python("-c", CARRY_OUT, cwd=tmp_path)
    assert done.status == 0, done.err
    found = torch.load(tmp_path / "pruned.pt")
    assert found.keys() == pruned.state_dict().keys()
    assert all(torch.equal(found[key], value) for key, value in pruned.state_dict().items())


def test_a_plan_may_be_edited() -> None:
    model = resnet()
    plan = prune(model, X, 0.5)[1].plan
    plan["kept"]["layer1.0.bn1"] = [0, 7]
    del plan["kept"]["layer1.1.bn1"]
    report = prune(model, X, plan=plan)[1]
    assert report.kept["layer1.0.bn1"] == [0, 7]
    assert report.kept["layer1.1.bn1"] == list(range(16))


def edited(plan: dict[str, Any], **layers: Any) -> dict[str, Any]:
    names = {name.replace("_", "."): channels for name, channels in layers.items()}
    return {**plan, "kept": {**plan["kept"], **names}}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda p: [1], "the plan is none"),
        (lambda p: {**p, "by": "luck"}, "the plan is none"),
        (lambda p: edited(p, layer1_0_bn1="all"), "the plan is none"),
        (lambda p: {**p, "network": "0"}, "of a network of other layers or sizes"),
        (lambda p: edited(p, layer1_0_bn1=[]), "keeps no channel of layer1.0.bn1"),
        (lambda p: edited(p, layer1_0_bn1=[3, 16]), r"keeps \[3, 16\] of .* 0 to 15"),
        (lambda p: edited(p, layer1_0_bn7=[1]), "nothing ranks here; nearest: layer1.0.bn"),
        (lambda p: edited(p, bn1=[0], layer1_0_bn2=[1]), "can only go together"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(edit: Any, message: str) -> None:
    model = resnet()
    plan = prune(model, X, 0.5)[1].plan
    with pytest.raises(PruningError, match=message):
        prune(model, X, plan=edit(plan))


def test_what_has_to_stay_is_not_removed_by_a_plan() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3))
    model.append(nn.BatchNorm2d(8))
    plan = prune(randomise(model), X, 0.5)[1].plan
    with pytest.raises(PruningError, match="of 4 that have to stay: feeds the network's output"):
        prune(model, X, plan=edited(plan, **{"4": [0, 1]}))


@pytest.mark.parametrize("coupled", [False, True])
def test_a_threshold(coupled: bool) -> None:
    model = resnet()
    report = prune(model, X, threshold=0.3, min_channels=1, coupled=coupled)[1]
    assert report.ratio == "threshold"
    if not coupled:
        for name, kept in report.kept.items():
            sizes = model.get_submodule(name).weight.abs()
            assert kept == (sizes > 0.3).nonzero().flatten().tolist()
    assert 0 < report.removed < 0.5


def test_either_a_ratio_or_a_plan() -> None:
    with pytest.raises(PruningError, match="one of ratio, threshold and plan is given"):
        prune(resnet(), X)

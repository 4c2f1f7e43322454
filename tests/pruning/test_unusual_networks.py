"""What people's own networks do: pruned exactly, left whole with a reason, or refused."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from masking import check, difference, masked, prepared, randomise
from torch import Tensor, nn
from unusual_networks import LEFT_WHOLE, WHOLLY_PRUNED, Caching, Net, conv, halves, head

from rni_pl.pruning import prune


@pytest.mark.parametrize("ratio", [0.3, 0.6])
@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("build", WHOLLY_PRUNED.values(), ids=WHOLLY_PRUNED)
def test_pruned_wherever_nothing_ties(build: Callable, coupled: bool, ratio: float) -> None:
    model, x = prepared(build)
    report = check(model, x, ratio=ratio, coupled=coupled)
    allowed = set() if coupled else {name for name, why in report.skipped.items() if "tied" in why}
    assert set(report.skipped) == allowed
    assert report.channels_pruned < report.channels_dense


@pytest.mark.parametrize("ratio", [0.3, 0.6])
@pytest.mark.parametrize(("build", "layer", "why"), LEFT_WHOLE.values(), ids=LEFT_WHOLE)
def test_left_whole_with_a_reason(build: Callable, layer: str, why: str, ratio: float) -> None:
    model, x = prepared(build)
    report = check(model, x, ratio=ratio, coupled=True)
    assert why in report.skipped[layer]
    assert re.search(r" \(\w+\.py:\d+\)", report.skipped[layer]), "no line of the network's code"
    assert "head.0.1" in report.kept


@pytest.mark.parametrize("ratio", [0.1, 0.2, 0.4, 0.5])
def test_halves_stay_halves(ratio: float) -> None:
    check(*prepared(lambda: Net(halves, part=conv(6, 6))), ratio=ratio)


def test_what_a_slice_at_a_number_takes_stays() -> None:
    def cut(net: Net, x: Tensor) -> Tensor:
        x = net.stem(x)
        return net.head(torch.cat([net.part(x[:, :6]), x[:, 6:]], 1))

    model, x = prepared(lambda: Net(cut, 14, part=conv(6, 8)))
    report = check(model, x, ratio=0.6)
    assert report.kept["stem.1"][:6] == list(range(6))
    assert len(report.kept["stem.1"]) < 12


def test_what_is_noted_while_watched_stays_off_the_model() -> None:
    model = Caching()
    prune(model, torch.zeros(1, 3, 16, 16), 0.5, min_channels=1)
    assert model.cache == {}


class Deciding(nn.Module):
    def __init__(self, decide: Callable[[Tensor], bool]) -> None:
        super().__init__()
        self.decide, self.a, self.b = decide, conv(3, 12), head(12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.b(x) if self.decide(x) else self.b(-x)


DECISIONS = [lambda x: x.mean() > 0, lambda x: x.mean().item() > 0, lambda x: torch.equal(x, -x)]


@pytest.mark.parametrize("decide", DECISIONS)
def test_channels_that_decide_by_their_values_stay(decide: Callable[[Tensor], bool]) -> None:
    report = check(*prepared(lambda: Deciding(decide)), ratio=0.5)
    assert "(test_unusual_networks.py:" in report.skipped["a.1"]
    assert "list index" not in report.skipped["a.1"]
    assert "b.0.1" in report.kept


@pytest.mark.parametrize("decide", DECISIONS)
def test_other_decisions_by_value_are_followed(decide: Callable[[Tensor], bool]) -> None:
    def by_image(net: Net, x: Tensor) -> Tensor:
        y = net.stem(x)
        y = net.head(y) if decide(x) else net.head(-y)
        return y if decide(y) else -y

    report = check(*prepared(lambda: Net(by_image)), ratio=0.5)
    assert not report.skipped
    assert len(report.kept["stem.1"]) < 12


class Auxiliary(nn.Module):
    """A second head in training, perhaps behind a decision by value."""

    def __init__(self, decides: bool) -> None:
        super().__init__()
        self.a, self.b, self.c, self.aux = conv(3, 12), conv(12, 10), head(10), head(12)
        self.decides = decides

    def forward(self, x: Tensor) -> Any:
        x = self.a(x)
        logits = self.c(self.b(x))
        if self.training and (not self.decides or x.mean() > -1):
            return logits, self.aux(x)
        return logits


@pytest.mark.parametrize("decides", [False, True])
def test_heads_that_exist_in_training_alone(decides: bool) -> None:
    pruned, report = prune(Auxiliary(decides), torch.randn(2, 3, 16, 16), 0.5)
    assert "aux.0.1" in report.kept
    assert len(pruned.train()(torch.randn(2, 3, 16, 16))) == 2


def test_several_inputs_and_outputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = conv(3, 12), conv(1, 12), head(24)

        def forward(self, image: Tensor, depth: Tensor) -> dict[str, Any]:
            x = torch.cat([self.a(image), self.b(depth)], 1)
            return {"logits": self.c(x), "more": [x.mean((2, 3))]}

    model = randomise(Two()).eval()
    inputs = torch.randn(2, 3, 8, 8), torch.randn(2, 1, 8, 8)
    pruned, report = prune(model, inputs, 0.5)
    assert list(report.kept) == ["c.0.1"]
    assert "output" in report.skipped["a.1"]
    with torch.no_grad():
        found, expected = (net(*inputs)["logits"] for net in (pruned, masked(model, report)))
    assert difference(found, expected) < 1e-5


def test_places_chosen_by_value_among_channels_and_positions() -> None:
    """As detectors choose what they are sure of: however many that are, in front channels go."""

    def sure(net: Any, x: Tensor) -> Tensor:
        y = net.stem(x)
        scores = net.out(y).permute(0, 2, 3, 1).flatten().sigmoid()
        (places,) = torch.where(scores > 0.45)
        return net.head(y) + scores[places[:7]].sum()

    model, x = prepared(lambda: Net(sure, out=nn.Conv2d(12, 5, 1)))
    report = check(model, x, ratio=0.5)
    assert len(report.kept["stem.1"]) == 6

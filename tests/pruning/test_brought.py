"""Networks as people bring them: arguments of any kind, and copies of whatever they carry."""

import copy
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from masking import difference, masked, randomise
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel
from torchvision.models.feature_extraction import create_feature_extractor
from unusual_networks import conv, head

from rni_pl.errors import PruningError
from rni_pl.pruning import PruningReport, prune
from rni_pl.pruning.structure import resize, structure_of

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Network(nn.Module):
    """Two norm layers, both of which can go."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = conv(3, 12), head(12)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.stem(x))


def same(model: nn.Module, *args: Any, channels: int = 20, **kwargs: Any) -> PruningReport:
    """Prune a network; what it gives must be what the masked one does, nested alike."""
    randomise(model).eval()
    pruned, report = prune(model, args, 0.5, "local", example_kwargs=kwargs, coupled=True)
    assert report.channels_pruned <= 0.55 * report.channels_dense
    assert report.channels_dense == channels
    with torch.no_grad():
        found, expected = pruned(*args, **kwargs), masked(model, report)(*args, **kwargs)
    leaves = torch.utils._pytree.tree_flatten(found), torch.utils._pytree.tree_flatten(expected)
    assert leaves[0][1] == leaves[1][1]
    for one, other in zip(leaves[0][0], leaves[1][0], strict=True):
        assert difference(one, other) < 1e-4
    return report


class HandsOn(Network):
    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.run(x, *args, **kwargs)

    def run(self, x: Tensor, scale: float = 1.0, more: Tensor | None = None) -> Tensor:
        x = super().forward(x if more is None else x + more)
        return x * scale


class EachOf(Network):
    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key: super(EachOf, self).forward(x) for key, x in batch.items()}


class Asks(Network):
    def forward(self, batch: dict[str, Tensor]) -> dict[str, Any]:
        x = batch["image"]
        x = super().forward(x * batch["mask"] if "mask" in batch else x)
        return {"logits": x, "all": (x, [x.sum()])}


class Images(Network):
    def forward(self, images: list[Tensor]) -> list[Tensor]:
        return [super(Images, self).forward(x[None])[0] for x in images]


class Wrapped(nn.Module):
    """The network within, entered behind its forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.model = HandsOn()

    def forward(self, x: Tensor) -> Tensor:
        return self.model.run(x, 2.0)


ARGUMENTS: dict[str, tuple[Callable[[], nn.Module], tuple, dict]] = {
    "handed on": (HandsOn, (X,), {}),
    "positions handed on": (HandsOn, (X, 2.0, X), {}),
    "by name": (HandsOn, (X,), {"scale": 0.5, "more": X}),
    "by name alone": (HandsOn, (), {"x": X}),
    "average of weights": (lambda: AveragedModel(Network()), (X,), {}),
    "dictionary gone through": (EachOf, ({"a": X, "b": X + 1},), {}),
    "key asked for": (Asks, ({"image": X, "mask": (X > 0).float()},), {}),
    "key missing": (Asks, ({"image": X},), {}),
    "images of several sizes": (Images, ([X[0], X[1, :, :12]],), {}),
    "forward gone round": (Wrapped, (X,), {}),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments(name: str) -> None:
    build, args, kwargs = ARGUMENTS[name]
    same(build(), *args, **kwargs)


def test_anything_but_a_tuple_is_one_argument() -> None:
    for model, example in ((Images(), [X[0]]), (EachOf(), {"a": X}), (Network(), X)):
        assert prune(randomise(model), example, 0.5)[1].channels_pruned < 20


# GraphModules.


class Inside(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Any:
        return self.body(x)


def resnet(**options: Any) -> nn.Module:
    return randomise(torchvision.models.resnet18(num_classes=5, **options)).eval()


GRAPHS: dict[str, Callable[[], nn.Module]] = {
    "extractor": lambda: create_feature_extractor(resnet(), {"layer3": "a", "fc": "b"}),
    "extractor inside": lambda: Inside(create_feature_extractor(resnet(), {"fc": "logits"})),
    "traced inside": lambda: Inside(torch.fx.symbolic_trace(resnet())),
    "traced": lambda: torch.fx.symbolic_trace(Network()),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_graph_modules(name: str) -> None:
    x = torch.randn(2, 3, 64, 64)
    model = randomise(GRAPHS[name]()).eval()
    graphs = [m for m in model.modules() if isinstance(m, torch.fx.GraphModule)]
    code = [(m.code, type(m).forward) for m in graphs]
    pruned, report = prune(model, x, 0.5)
    assert [(m.code, type(m).forward) for m in graphs] == code, "the given network was changed"
    assert report.channels_pruned < 0.6 * report.channels_dense
    with torch.no_grad():
        found, expected = pruned(x), masked(model, report).eval()(x)
    for one, other in zip(
        *(torch.utils._pytree.tree_leaves(y) for y in (found, expected)), strict=True
    ):
        assert difference(one, other) < 1e-4
    copied = [m.code for m in pruned.modules() if isinstance(m, torch.fx.GraphModule)]
    assert copied == [written for written, _ in code]
    assert not any(m.training for m in pruned.modules())
    copy.deepcopy(pruned)
    again = resize(copy.deepcopy(model), structure_of(pruned))
    again.load_state_dict(pruned.state_dict())


# Copies.


@pytest.mark.parametrize("training", [False, True])
def test_modes_are_kept(training: bool) -> None:
    model = create_feature_extractor(resnet(), {"fc": "logits"}).train(training)
    model.bn1.training = not training  # frozen, for one
    code = type(model).forward
    pruned, _ = prune(model, torch.randn(2, 3, 64, 64), 0.5)
    assert type(model).forward is code, "the given network was changed"
    for one, other in zip(model.modules(), pruned.modules(), strict=True):
        assert one.training == other.training


class Keeps(Network):
    def forward(self, x: Tensor) -> Tensor:
        self.features = self.stem(x)  # for a loss beside it
        self.kept = {"all": [self.features * 2]}
        return self.head(self.features)


def test_activations_that_are_kept_after_a_step() -> None:
    model = randomise(Keeps())
    model(X).sum().backward()
    kept = model.features
    pruned, report = prune(model.eval(), X, 0.5)
    assert model.features is kept
    assert model.kept["all"][0].requires_grad
    assert torch.equal(pruned.kept["all"][0], model.kept["all"][0])
    fresh = Keeps().eval()
    fresh.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert difference(pruned(X), masked(fresh, report)(X)) < 1e-4
    pruned.train()(X).sum().backward()


ATTRIBUTES: dict[str, Callable[[], Any]] = {
    "lock": threading.Lock, "open file": lambda: Path(__file__).open(),  # noqa: SIM115
    "generator": lambda: (i for i in "ab"),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTRIBUTES)
@pytest.mark.parametrize("inside", [False, True])
def test_what_cannot_be_copied_is_named(name: str, inside: bool) -> None:
    model = randomise(Network())
    owner = model.stem[1] if inside else model
    owner.extra = {"held": ATTRIBUTES[name]()}
    with pytest.raises(PruningError, match=r"extra \(dict\) cannot be copied: ") as caught:
        prune(model, X, 0.5)
    assert str(caught.value).startswith("stem.1.extra" if inside else "extra")
    assert "\n" not in str(caught.value)


class Own(nn.Module):
    """Its copy is built anew, as wide as it was made."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.width, self.stem, self.head = width, conv(3, width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x).mean((2, 3)))

    def __deepcopy__(self, memo: dict) -> "Own":
        memo[id(self)] = new = Own(self.width)
        new.load_state_dict(self.state_dict())
        return new.train(self.training)


@pytest.mark.parametrize("around", [False, True])
def test_copies_of_their_own_are_not_asked(around: bool) -> None:
    same(
        nn.Sequential(nn.Sequential(nn.Conv2d(3, 3, 1), Own())) if around else Own(), X, channels=12
    )


@pytest.mark.parametrize("inference", [torch.inference_mode, torch.no_grad])
def test_what_is_pruned_without_gradients_trains(inference: Callable) -> None:
    with inference():
        model = randomise(Network())  # its parameters are inference tensors
        pruned, _ = prune(model, X.clone(), 0.5)
    assert not any(p.is_inference() for p in (*pruned.parameters(), *pruned.buffers()))
    F.mse_loss(pruned.train()(X), torch.zeros(2, 5)).backward()
    assert all(p.grad is not None for p in pruned.parameters() if p.requires_grad)


def test_hooks_and_attributes_are_the_copys_own() -> None:
    model = randomise(Network()).eval()
    model.notes, model.stem[0].weight.note = [1], "kept"
    model.stem[0].weight.requires_grad_(False)
    model.same = model.stem  # a second name
    model.stem.register_forward_hook(lambda module, args, output: output.roll(1, 1))
    pruned, report = prune(model, X, 0.5)
    assert pruned.same is pruned.stem
    assert pruned.notes == [1]
    assert pruned.notes is not model.notes
    assert pruned.stem[0].weight.note == "kept"
    assert not pruned.stem[0].weight.requires_grad
    with torch.no_grad():
        assert difference(pruned(X), masked(model, report)(X)) < 1e-4


class OnlyWithoutValues(nn.Module):
    """Its training wants targets, and tensors with values are refused while it is watched."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        if self.training or (torch.is_inference_mode_enabled() and not x.is_meta):
            raise ValueError("no targets")
        return self.out(self.a(x).mean((2, 3)))


def test_an_attempt_with_values_that_fails_changes_nothing() -> None:
    model = OnlyWithoutValues().eval()
    nn.init.uniform_(model.a[1].weight)
    _, report = prune(model, torch.randn(2, 3, 9, 9), 0.5)
    assert report.channels_pruned == 4

"""The callback's gradient is autograd's of loss + penalty."""

import math
from functools import partial
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from rni_pl import models
from rni_pl.callbacks import SparsityRegulariser
from rni_pl.callbacks.sparsity import add_gradient, trainable_scales
from rni_pl.errors import ConfigError
from rni_pl.regularisers import L1, RNI, UCS, Polarization, Regulariser
from rni_pl.runs.spec import ModelSpec
from rni_pl.training.module import Classifier
from rni_pl.training.recipe import Recipe, parameter_groups
from rni_pl.training.schedulers import cosine, multistep, onecycle

REGULARISERS = [RNI(1e-2, 1.5), L1(1e-2), UCS(), Polarization(1e-2, 1.2)]


class Snoop(pl.Callback):
    """Keeps the gradients that the optimiser is about to use, at the first step."""

    gradients: dict[str, Tensor] | None = None

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if self.gradients is None:
            self.gradients = {n: p.grad.clone() for n, p in pl_module.model.named_parameters()}


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    images, labels = torch.randn(8 * count, 3, 32, 32), torch.randint(0, 10, (8 * count,))
    return list(zip(images.split(8), labels.split(8), strict=True))


def classifier(regulariser: Regulariser) -> Classifier:
    spec = ModelSpec({"_target_": "rni_pl.models.resnet20"}, 10, norm=regulariser.norm)
    return Classifier(spec.to_dict())


def callback_gradients(
    module: Classifier, regulariser: Regulariser, data: list, accumulate: int, precision: str
) -> dict[str, Tensor]:
    snoop = Snoop()
    trainer = pl.Trainer(
        max_steps=1,
        accumulate_grad_batches=accumulate,
        precision=precision,  # type: ignore[arg-type]
        callbacks=[SparsityRegulariser(regulariser), snoop],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    images, labels = (torch.cat(parts) for parts in zip(*data, strict=True))
    trainer.fit(module, DataLoader(TensorDataset(images, labels), batch_size=8))
    assert snoop.gradients is not None
    return snoop.gradients


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("regulariser", REGULARISERS, ids=lambda r: type(r).__name__)
def test_gradient_is_autograds(regulariser: Regulariser, accumulate: int, precision: str) -> None:
    module, data = classifier(regulariser), batches(accumulate)
    start = {name: value.clone() for name, value in module.state_dict().items()}
    found = callback_gradients(module, regulariser, data, accumulate, precision)

    module.load_state_dict(start)
    module.zero_grad()
    model = module.model.train().to(memory_format=torch.channels_last)
    for images, labels in data:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            loss = F.cross_entropy(model(images), labels)
        (loss / accumulate).backward()
    without = {name: p.grad.clone() for name, p in model.named_parameters()}
    scales = torch.cat(trainable_scales(model))
    (regulariser.penalty(scales) + 0 * scales.sum()).backward()  # UCS has no graph of its own
    for name, parameter in model.named_parameters():
        assert torch.allclose(found[name], parameter.grad, rtol=1e-6, atol=1e-6), name
    if regulariser != UCS():
        scale = "layer3.0.bn1.weight"
        moved = (found[scale] - without[scale]).abs().max()
        assert moved > 1e-4, "the penalty is too small for this test to see it"


def test_the_penalty_counts_as_much_where_the_loss_is_scaled() -> None:
    """``16-mixed`` on a GPU scales the loss; here the same plugin does on the CPU."""
    regulariser, data = RNI(1.0, 1.5), batches(1)
    scales = []
    for plugin in (None, MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))):
        torch.manual_seed(0)
        module = classifier(regulariser)
        trainer = pl.Trainer(
            max_steps=1, callbacks=[SparsityRegulariser(regulariser)], accelerator="cpu",
            plugins=plugin, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, gradient_clip_val=1.0,
        )  # fmt: skip
        before = torch.cat(trainable_scales(module)).clone()
        trainer.fit(module, DataLoader(TensorDataset(*data[0]), batch_size=8))
        scales.append(torch.cat(trainable_scales(module)).detach() - before)
    assert scales[0].abs().max() > 0.01
    assert torch.allclose(scales[0], scales[1], rtol=0.1, atol=1e-3)


def test_gradients_are_clipped_in_mixed_precision() -> None:
    module, data = classifier(RNI(1.0)), batches(1)
    before = torch.cat(trainable_scales(module)).clone()
    trainer = pl.Trainer(
        max_steps=1, accelerator="cpu", precision="bf16-mixed", gradient_clip_val=1e-9,
        logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(TensorDataset(*data[0]), batch_size=8))
    assert torch.allclose(torch.cat(trainable_scales(module)), before, atol=1e-6)


@pytest.mark.parametrize(
    ("regulariser", "norm"), [(RNI(), "bn"), (L1(), "sigbn"), (Polarization(), "sigbn")]
)
def test_scales_are_of_the_kind_that_the_penalty_is_for(
    regulariser: Regulariser, norm: str
) -> None:
    callback: Any = SparsityRegulariser(regulariser)
    with pytest.raises(ConfigError, match=f"{type(regulariser).__name__} is for scales of"):
        callback.on_fit_start(None, models.resnet20(norm=norm))


def test_gradient_covers_all_norms_and_leaves_frozen_ones_alone() -> None:
    model = models.resnet20(norm="bn")
    model.bn1.weight.requires_grad_(False)
    add_gradient(model, L1(0.1))
    norms = {n: m for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert model.bn1.weight.grad is None
    assert all(
        torch.equal(m.weight.grad, torch.full_like(m.weight, 0.1))
        for name, m in norms.items()
        if name != "bn1"
    )


def test_logged_penalty_and_receded_share() -> None:
    module = classifier(RNI(0.5))
    for scale in trainable_scales(module):
        scale.data.fill_(-10.0)  # sigmoid: 4.5e-5
    module.model.bn1.weight.data.fill_(2.0)
    trainer = pl.Trainer(
        max_steps=1,
        callbacks=[SparsityRegulariser(RNI(0.5))],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module.recipe = recipe_with(1e-12)
    images, labels = batches(1)[0]
    trainer.fit(module, DataLoader(TensorDataset(images, labels), batch_size=8))
    total = sum(scale.numel() for scale in trainable_scales(module))
    assert float(trainer.callback_metrics["sparsity/receded_0.01"]) == pytest.approx(1 - 16 / total)

    def penalty(gamma: float) -> float:
        s = 1 / (1 + math.exp(-gamma))
        return s * (1 - math.log(s))

    expected = 0.5 * (16 * penalty(2.0) + (total - 16) * penalty(-10.0))
    assert float(trainer.callback_metrics["sparsity/penalty"]) == pytest.approx(expected, rel=1e-5)


def recipe_with(lr: float, scheduler: Any = multistep) -> Recipe:
    return Recipe(partial(torch.optim.SGD, lr=lr), scheduler)


def test_parameter_groups_of_the_recipe() -> None:
    recipe = Recipe()
    rest, sigbn = parameter_groups(models.resnet20(norm="sigbn"), recipe)
    assert sigbn["lr"] == pytest.approx(1.0)
    assert sigbn["weight_decay"] == 0.0
    assert sum(p.numel() for p in sigbn["params"]) == 688
    assert "lr" not in rest
    (only,) = parameter_groups(models.resnet20(norm="bn"), recipe)
    assert len(only["params"]) == len(list(models.resnet20(norm="bn").parameters()))


def rates_of(recipe: Recipe) -> list[list[float]]:
    """Learning rates of 100 steps: of the weights, and of the SigBN scales."""
    optimizer = recipe.optimizer_of(models.resnet20(norm="sigbn"))
    schedule = recipe.scheduler(optimizer, 100)
    rates = []
    for _ in range(100):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return [list(column) for column in zip(*rates, strict=True)]


def test_schedule_drops_at_half_and_three_quarters() -> None:
    plain, scales = rates_of(Recipe())
    assert plain == pytest.approx([0.1] * 50 + [0.01] * 25 + [0.001] * 25)
    assert scales == pytest.approx([1.0] * 50 + [0.1] * 25 + [0.01] * 25)


@pytest.mark.parametrize(
    ("scheduler", "middle", "end"), [(cosine, 0.05, 0.0), (onecycle, None, 0.0)]
)
def test_other_schedulers(scheduler: Any, middle: float | None, end: float) -> None:
    plain, scales = rates_of(recipe_with(0.1, scheduler))
    assert scales == pytest.approx([10 * rate for rate in plain])
    assert max(plain) == pytest.approx(0.1, rel=1e-3)
    assert plain[-1] == pytest.approx(end, abs=1e-3)
    if middle is not None:
        assert plain[50] == pytest.approx(middle)

"""The bare step of our settings: neither Lightning nor data."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rni_pl.callbacks.sparsity import add_gradient
from rni_pl.regularisers import Regulariser
from rni_pl.training import hardware
from rni_pl.training.recipe import Recipe


def bare_step(
    model: nn.Module,
    recipe: Recipe,
    regulariser: Regulariser,
    images: Tensor,
    labels: Tensor,
    precision: str = "auto",
) -> Callable[[], None]:
    """A training step of `model`, always on the same batch."""
    model = model.train().to(memory_format=torch.channels_last)
    images = images.to(memory_format=torch.channels_last)
    optimizer = recipe.optimizer_of(model)
    mixed = hardware.choose_precision(precision, "cpu") == "bf16-mixed"

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        add_gradient(model, regulariser)
        optimizer.step()

    return step

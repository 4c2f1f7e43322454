"""Networks with random parameters, what "masked" means, and how far two outputs are apart."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from layer_networks import image
from torch import Tensor, nn

from rni_pl.norm import scaled_norms
from rni_pl.pruning import PruningReport, prune


def randomise(model: nn.Module) -> nn.Module:
    """Random scales, biases and running statistics, as after training."""
    for _, norm in scaled_norms(model):
        nn.init.normal_(norm.weight)
        if norm.bias is not None:
            nn.init.normal_(norm.bias)
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    return model


def masked(model: nn.Module, report: PruningReport) -> nn.Module:
    """A copy with the scale and bias of every removed channel at 0."""
    model = copy.deepcopy(model)
    for name, kept in report.kept.items():
        norm = model.get_submodule(name)
        gone = torch.ones(norm.num_features, dtype=torch.bool)
        gone[kept] = False
        with torch.no_grad():
            # a sigmoid reaches 0 only far out
            norm.weight[gone] = 0.0 if norm.bias is not None else -1e4
            if norm.bias is not None:
                norm.bias[gone] = 0.0
    return model


def difference(a: Tensor, b: Tensor) -> float:
    """Largest difference relative to the largest value."""
    return float((a - b).abs().max() / b.abs().max())


def prepared(build: Callable[[], nn.Module]) -> tuple[nn.Module, Tensor]:
    model = randomise(build()).double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.normal_(module.bias)
    return model, torch.randn(2, 3, 16, 16, dtype=torch.float64)


def check(model: nn.Module, x: Tensor, **request: Any) -> Any:
    """Prune, compare, take a training step; the report."""
    with torch.no_grad():
        before = model(x)
        pruned, report = prune(model, x, min_channels=1, **request)
        assert difference(pruned(x), masked(model, report)(x)) < 1e-9
        assert torch.equal(model(x), before), "the given model was changed"
    pruned.train()(x).sum().backward()
    return report


BATCHNORMS = nn.modules.batchnorm._BatchNorm


def prepared_layers(build: Callable[[], nn.Module]) -> tuple[nn.Module, Tensor]:
    """With random parameters and statistics everywhere, in float64; and its example."""
    model = build()
    with torch.no_grad():
        for module in model.modules():
            if getattr(module, "running_mean", None) is not None:
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
            if (
                isinstance(module, BATCHNORMS | nn.GroupNorm | nn.LayerNorm)
                and module.weight is not None
            ):
                module.weight.normal_()
                if module.bias is not None:
                    module.bias.normal_()
    rank = next(
        (
            m.weight.ndim - 2
            for m in model.modules()
            if hasattr(m, "stride") and hasattr(m, "weight")
        ),
        1,
    )
    return model.double().eval(), image(rank).double()

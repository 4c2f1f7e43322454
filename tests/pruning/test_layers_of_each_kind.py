"""Every kind of layer: pruned, it computes what the masked network does, or it stays whole."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from layer_networks import FOLLOWS, LEFT_WHOLE, PRUNED
from masking import difference, masked
from masking import prepared_layers as prepared
from torch import nn

from rni_pl.pruning import PruningReport, prune, resize, structure_of

BATCHNORMS = nn.modules.batchnorm._BatchNorm


def masked_with(model: nn.Module, report: PruningReport, follows: dict) -> nn.Module:
    """Scales, biases, and the parameters that follow at 0 for removed channels."""
    model = masked(model, report)
    for name, (norm, dim) in follows.items():
        gone = [c for c in range(report.widths[norm]) if c not in report.kept[norm]]
        model.get_parameter(name).data.index_fill_(dim, torch.tensor(gone, dtype=torch.long), 0)
    return model


def compared(name: str, build: Callable, ratio: float, **options: Any) -> PruningReport:
    """Prune a network, compare, train, and build it anew from its structure; the report."""
    model, x = prepared(build)
    with torch.no_grad():
        before = model(x)
        pruned, report = prune(model, x, ratio, "local", min_channels=1, **options)
        expected = masked_with(model, report, FOLLOWS.get(name, {}))(x)
        assert difference(pruned(x), expected) < 1e-9
        assert torch.equal(model(x), before), "the given model was changed"
        rebuilt = resize(build(), structure_of(pruned)).double().eval()
        rebuilt.load_state_dict(pruned.state_dict())
        assert torch.equal(rebuilt(x), pruned(x))
    if not any(isinstance(m, nn.SyncBatchNorm) for m in model.modules()):
        pruned.train()(x).sum().backward()
    return report


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("ratio", [0.3, 0.6])
@pytest.mark.parametrize("name", PRUNED)
def test_pruned_wherever_it_is_exact(name: str, ratio: float) -> None:
    report = compared(name, PRUNED[name], ratio, coupled=True)
    assert not report.skipped
    fewest = 0.6 if ratio == 0.6 else 1.0
    for layer, kept in report.kept.items():
        assert len(kept) <= fewest * report.widths[layer], layer


@pytest.mark.filterwarnings("ignore:.*spectral_norm.*:FutureWarning")
@pytest.mark.parametrize("ratio", [0.3, 0.6])
@pytest.mark.parametrize("name", LEFT_WHOLE)
def test_left_whole_with_a_reason(name: str, ratio: float) -> None:
    build, layer, why = LEFT_WHOLE[name]
    report = compared(name, build, ratio, coupled=True)
    assert why in report.skipped[layer]
    assert "head.0.1" in report.kept

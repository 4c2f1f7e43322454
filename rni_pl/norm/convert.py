"""Turning the BatchNorm layers of any network into SigBN, for training from scratch."""

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin

from rni_pl.norm.scales import after_norm
from rni_pl.norm.sigmoid import REPLACED, SigmoidBatchNorm, SigmoidBatchNormAct2d


def convert_batchnorm(model: nn.Module) -> nn.Module:
    """Turn every BatchNorm1d, 2d and 3d of `model` into a SigBN of its rank and return the model.

    Works in place on submodules (like `nn.SyncBatchNorm.convert_sync_batchnorm`); use the
    returned module, since `model` may itself be a BatchNorm. Running statistics, eps, momentum,
    device and dtype are kept; gamma is drawn anew from N(0, 1), as for training from scratch.
    Layers without scales (``affine=False``) are left as they are; timm's BatchNorm with an
    activation keeps its activation, and SyncBatchNorm goes on synchronising.

    Raises:
        ValueError: there is no BatchNorm, a subclass of it computes something else, a layer has
            hooks, that would be lost, has no size yet (lazy), or is in a list as well, through
            which it might be called.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    if not norms:
        raise ValueError(f"{type(model).__name__} has no BatchNorm that could become a SigBN")
    converted = {norm: _to_sigmoid(norm) for norm in norms}  # once, however often it is used
    _check_lists(model, {norm for norm in norms if converted[norm] is not norm})
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if isinstance(child, _BatchNorm):
                module._modules[name] = converted[child]
    return converted.get(model, model)  # type: ignore[call-overload]


def _check_lists(model: nn.Module, replaced: set[_BatchNorm]) -> None:
    """Raise where a plain list, tuple or dictionary of a module holds a layer to be replaced."""
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if key == "_modules" or not isinstance(value, list | tuple | dict):
                continue
            held = value.values() if isinstance(value, dict) else value
            if any(isinstance(one, nn.Module) and one in replaced for one in held):
                where = f"{name}.{key}".lstrip(".")
                raise ValueError(f"{where} holds BatchNorm layers: make an nn.ModuleList of it")


def _to_sigmoid(norm: _BatchNorm) -> _BatchNorm:
    if isinstance(norm, SigmoidBatchNorm) or not norm.affine:
        return norm
    name = type(norm).__name__
    if isinstance(norm, LazyModuleMixin):
        raise ValueError(f"a {name} has no size yet: run the network once before it is converted")
    after = after_norm(norm)
    kind: Any = next((ours for theirs, ours in REPLACED.items() if isinstance(norm, theirs)), None)
    if after is None or kind is None:
        raise ValueError(f"{name} does more than BatchNorm; no SigBN replaces it")
    if norm._forward_hooks or norm._forward_pre_hooks:
        raise ValueError(f"a {name} has hooks, which would be lost")
    sigmoid: Any = (SigmoidBatchNormAct2d if after else kind)(
        norm.num_features,
        eps=norm.eps,
        momentum=norm.momentum,
        track_running_stats=norm.track_running_stats,
        device=norm.weight.device,
        dtype=norm.weight.dtype,
        **after,
    )
    # The buffers move over as they are: they hold what the data looks like, not what is learned.
    sigmoid._buffers = norm._buffers
    sigmoid.weight.requires_grad_(norm.weight.requires_grad)
    if isinstance(norm, nn.SyncBatchNorm):
        sigmoid.process_group = norm.process_group
    return sigmoid.train(norm.training)

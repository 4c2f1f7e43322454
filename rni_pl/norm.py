"""BatchNorm layers, of every rank, whose scales rank the channels."""

from collections.abc import Iterator
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin

from rni_pl.statistics import normalise, shares

NAMES = {"bn": "BatchNorm", "sigbn": "SigBN"}  # of the kinds of norm layers


class SigmoidBatchNorm(_BatchNorm):
    """BatchNorm with the bounded scale ``sigmoid(weight)`` and no bias: what all ranks share.

    Source: Suteu & Guo 2022, arXiv 2204.06404, section 3. ``weight`` holds gamma, of shape
    ``(num_features,)``, drawn from N(0, 1). Running statistics, ``eps`` and ``momentum`` are
    those of torch's BatchNorm of the same rank, in whose place it can be built.

    Raises:
        ValueError: ``affine=False``, which would leave it without the scale.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if not affine:
            name = type(self).__name__
            raise ValueError(f"{name} is its scale: affine=False makes a BatchNorm of torch's")
        super().__init__(num_features, eps, momentum, True, track_running_stats, device, dtype)
        self.register_parameter("bias", None)

    def reset_parameters(self) -> None:
        """Draw gamma from N(0, 1) and reset the running statistics."""
        self.reset_running_stats()
        nn.init.normal_(self.weight)

    def forward(self, input: Tensor) -> Tensor:
        """Normalise a batch of shape (N, C, ...), with as many dimensions as the rank allows."""
        self._check_input_dim(input)
        average_factor = 0.0 if self.momentum is None else self.momentum
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                average_factor = 1.0 / float(self.num_batches_tracked)
        use_batch_statistics = self.training or self.running_mean is None
        track = not self.training or self.track_running_stats
        return F.batch_norm(
            input,
            self.running_mean if track else None,
            self.running_var if track else None,
            torch.sigmoid(self.weight),
            None,
            use_batch_statistics,
            average_factor,
            self.eps,
        )


class SigmoidBatchNorm1d(SigmoidBatchNorm, nn.BatchNorm1d):
    """SigBN of batches of shape (N, C) or (N, C, L)."""


class SigmoidBatchNorm2d(SigmoidBatchNorm, nn.BatchNorm2d):
    """SigBN of batches of shape (N, C, H, W)."""


class SigmoidBatchNorm3d(SigmoidBatchNorm, nn.BatchNorm3d):
    """SigBN of batches of shape (N, C, D, H, W)."""


class SigmoidBatchNormAct2d(SigmoidBatchNorm2d):
    """A `SigmoidBatchNorm2d` that carries its dropout and activation with it, as timm's does.

    Takes the place of ``timm.layers.BatchNormAct2d``, whose children have the same names.
    """

    def __init__(self, num_features: int, drop: nn.Module, act: nn.Module, **options: Any) -> None:
        super().__init__(num_features, **options)
        self.drop = drop
        self.act = act

    def forward(self, input: Tensor) -> Tensor:
        """Normalise, drop and activate a batch of shape (N, C, H, W)."""
        return self.act(self.drop(super().forward(input)))


class SigmoidSyncBatchNorm(SigmoidBatchNorm):
    """SigBN of batches of any shape (N, C, ...) on the statistics of all processes' images.

    Takes the place of `nn.SyncBatchNorm`, whose ``process_group`` it keeps (None: all processes),
    on every backend of `torch.distributed`.
    """

    process_group: Any = None

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2D input (got {input.dim()}D input)")

    def forward(self, input: Tensor) -> Tensor:
        """Normalise a batch of shape (N, C, ...)."""
        if not shares(self):
            return super().forward(input)
        self._check_input_dim(input)
        return normalise(self, scale(self), input)


REPLACED: dict[type[_BatchNorm], type[SigmoidBatchNorm]] = {
    nn.BatchNorm1d: SigmoidBatchNorm1d,
    nn.BatchNorm2d: SigmoidBatchNorm2d,
    nn.BatchNorm3d: SigmoidBatchNorm3d,
    nn.SyncBatchNorm: SigmoidSyncBatchNorm,
}
PLAIN = {kind.forward for pair in REPLACED.items() for kind in pair}  # nothing but the norm


def scale(norm: _BatchNorm) -> Tensor:
    """The factor that a norm layer multiplies each channel by, shape (C,)."""
    if isinstance(norm, SigmoidBatchNorm):
        return torch.sigmoid(norm.weight)
    return norm.weight


def after_norm(norm: _BatchNorm) -> dict[str, nn.Module] | None:
    """The dropout and activation that timm's BatchNorm carries, by name; empty: there is none.

    None: the subclass computes something else of its own.
    """
    if type(norm).forward in PLAIN:
        return {}
    ours = type(norm).forward is SigmoidBatchNormAct2d.forward
    children = dict(norm.named_children())
    known = (ours or _is_timms(norm)) and children.keys() == {"drop", "act"}
    return children if known else None


def _is_timms(norm: _BatchNorm) -> bool:
    forward = type(norm).forward
    return f"{forward.__module__}.{forward.__qualname__}" == (
        "timm.layers.norm_act.BatchNormAct2d.forward"
    )


def norm_kind(model: nn.Module) -> str:
    """``"sigbn"`` where a network has SigBN layers, ``"bn"`` otherwise."""
    sigbn = any(isinstance(module, SigmoidBatchNorm) for module in model.modules())
    return "sigbn" if sigbn else "bn"


@torch.no_grad()
def silence(norm: _BatchNorm, channels: Tensor) -> None:
    """Set the effective scale of some channels (a bool mask, shape (C,)) to 0, in place."""
    far_out = -1e4  # where a sigmoid is 0 in every precision
    norm.weight[channels] = far_out if isinstance(norm, SigmoidBatchNorm) else 0.0


def has_scales(module: nn.Module) -> TypeGuard[_BatchNorm]:
    """Whether this is a BatchNorm (SigBN too) that has scales."""
    return isinstance(module, _BatchNorm) and module.affine


def scaled_norms(model: nn.Module) -> Iterator[tuple[str, _BatchNorm]]:
    """Names and layers of every BatchNorm that has scales, in the model's order."""
    return ((name, module) for name, module in model.named_modules() if has_scales(module))


@torch.no_grad()
def scale_sizes(model: nn.Module) -> dict[str, Tensor]:
    """Importance of every channel, the size of its effective scale: layer -> shape (C,)."""
    return {name: scale(module).abs() for name, module in scaled_norms(model)}


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

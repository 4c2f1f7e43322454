"""BatchNorm layers whose scales rank the channels."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SigmoidBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d with the bounded scale ``sigmoid(weight)`` and no bias.

    Source: Suteu & Guo 2022, arXiv 2204.06404, section 3. ``weight`` holds gamma, of shape
    ``(num_features,)``, drawn from N(0, 1). Running statistics, ``eps`` and ``momentum`` are
    those of `torch.nn.BatchNorm2d`.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, True, track_running_stats, device, dtype)
        self.register_parameter("bias", None)

    def reset_parameters(self) -> None:
        """Draw gamma from N(0, 1) and reset the running statistics."""
        self.reset_running_stats()
        nn.init.normal_(self.weight)

    def forward(self, input: Tensor) -> Tensor:
        """Normalise a batch of shape (N, C, H, W)."""
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


def scale(norm: nn.BatchNorm2d) -> Tensor:
    """The factor that a norm layer multiplies each channel by, shape (C,)."""
    if isinstance(norm, SigmoidBatchNorm2d):
        return torch.sigmoid(norm.weight)
    return norm.weight


def scaled_norms(model: nn.Module) -> Iterator[tuple[str, nn.BatchNorm2d]]:
    """Names and layers of every BatchNorm2d (SigBN too) that has scales, in the model's order."""
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d) and module.affine:
            yield name, module


def convert_batchnorm(model: nn.Module) -> nn.Module:
    """Turn every BatchNorm2d of `model` into a `SigmoidBatchNorm2d` and return the model.

    Works in place on submodules (like `nn.SyncBatchNorm.convert_sync_batchnorm`); use the
    returned module, since `model` may itself be a BatchNorm2d. Running statistics, eps, momentum,
    device and dtype are kept; gamma is drawn anew from N(0, 1), as for training from scratch.
    Layers without scales (``affine=False``) are left as they are.
    """
    if isinstance(model, nn.BatchNorm2d):
        return _to_sigmoid(model)
    for name, child in model.named_children():
        setattr(model, name, convert_batchnorm(child))
    return model


def _to_sigmoid(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    if isinstance(norm, SigmoidBatchNorm2d) or not norm.affine:
        return norm
    sigmoid = SigmoidBatchNorm2d(
        norm.num_features,
        norm.eps,
        norm.momentum,
        norm.track_running_stats,
        device=norm.weight.device,
        dtype=norm.weight.dtype,
    )
    # The buffers move over as they are: they hold what the data looks like, not what is learned.
    sigmoid._buffers = norm._buffers
    sigmoid.train(norm.training)
    return sigmoid

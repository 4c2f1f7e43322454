"""SigBN: BatchNorm layers, of every rank, whose scale is a sigmoid."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from rni_pl.norm.shared_statistics import normalise, shares


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
        return normalise(self, torch.sigmoid(self.weight), input)


REPLACED: dict[type[_BatchNorm], type[SigmoidBatchNorm]] = {
    nn.BatchNorm1d: SigmoidBatchNorm1d,
    nn.BatchNorm2d: SigmoidBatchNorm2d,
    nn.BatchNorm3d: SigmoidBatchNorm3d,
    nn.SyncBatchNorm: SigmoidSyncBatchNorm,
}

"""BatchNorm and SigBN: `sigmoid` layers, their `scales`, `convert` from one to the other.

`valley` finds the two modes of scales. `sync` lets layers share their statistics between processes,
by `shared_statistics`; `calibration` estimates running statistics anew.
"""

from rni_pl.norm.convert import convert_batchnorm
from rni_pl.norm.scales import (
    NAMES,
    after_norm,
    has_scales,
    norm_kind,
    scale,
    scale_sizes,
    scaled_norms,
    silence,
)
from rni_pl.norm.sigmoid import (
    SigmoidBatchNorm,
    SigmoidBatchNorm1d,
    SigmoidBatchNorm2d,
    SigmoidBatchNorm3d,
    SigmoidBatchNormAct2d,
    SigmoidSyncBatchNorm,
)

__all__ = [
    "NAMES",
    "SigmoidBatchNorm",
    "SigmoidBatchNorm1d",
    "SigmoidBatchNorm2d",
    "SigmoidBatchNorm3d",
    "SigmoidBatchNormAct2d",
    "SigmoidSyncBatchNorm",
    "after_norm",
    "convert_batchnorm",
    "has_scales",
    "norm_kind",
    "scale",
    "scale_sizes",
    "scaled_norms",
    "silence",
]

"""What callbacks for anybody's module derive from: Lightning comes as two packages."""

import sys

import pytorch_lightning as pl

BASES: tuple[type, ...] = (pl.Callback,)
if "lightning.pytorch" in sys.modules:  # whose command line takes callbacks of its own class only
    from lightning.pytorch import Callback

    BASES = (pl.Callback, Callback)

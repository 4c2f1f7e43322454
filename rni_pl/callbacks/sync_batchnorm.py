"""BatchNorm statistics over all processes, in training."""

import pytorch_lightning as pl

from rni_pl.norm import sync


class SyncBatchNorm(pl.Callback):
    """What Lightning's own ``sync_batchnorm`` does, for SigBN and on the CPU too."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Share statistics from here on."""
        sync.synchronise(pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the network as it came."""
        sync.separate(pl_module)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Leave the network as it came."""
        sync.separate(pl_module)

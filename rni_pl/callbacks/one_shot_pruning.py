"""Pruning in the training of any LightningModule, once."""

from typing import Any

from rni_pl.callbacks.live_pruning import LivePruning
from rni_pl.pruning import PruningReport


class OneShotPruning(LivePruning):
    """Prunes the network before training, or at the start of an epoch in the middle of it.

    Example::

        Trainer(callbacks=[SparsityRegulariser(RNI(1e-4)), OneShotPruning(0.5, at_epoch=80)])

    Args:
        ratio: the share of channels to remove, see `rni_pl.prune`.
        at_epoch: counted from 0; 0: before training.
        network: see `LivePruning`.
        example: see `LivePruning`.
        options: see `LivePruning`.

    Attributes:
        report: what was removed; None before.
    """

    def __init__(
        self,
        ratio: float,
        at_epoch: int = 0,
        network: str | None = None,
        example: Any = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(network, example, options)
        self.ratio, self.at_epoch = ratio, at_epoch
        self.report: PruningReport | None = None

    @property
    def state_key(self) -> str:
        """Several that prune at different epochs have a state each."""
        return self._generate_state_key(at_epoch=self.at_epoch)

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Prune, before the first batch of its epoch."""
        if batch_idx == 0 and trainer.current_epoch >= self.at_epoch and not self.is_pruned:
            self.report = self.prune(trainer, pl_module, batch, ratio=self.ratio)

"""Pruning step by step, with training in between."""

from collections.abc import Callable
from typing import Any

from pytorch_lightning.callbacks import ModelCheckpoint

from rni_pl.callbacks.live_pruning import LivePruning
from rni_pl.errors import ConfigError
from rni_pl.pruning import Importance, PruningReport

SCHEDULES = ("linear", "geometric")


def shares(ratio: float, steps: int, schedule: str = "linear") -> list[float]:
    """How much of the network is gone after each step: ``ratio * k / steps``, or, geometric,
    ``1 - (1 - ratio) ** (k / steps)``, where each step takes the same share of what is left.
    """
    parts = [k / steps for k in range(1, steps + 1)]
    if schedule == "linear":
        return [ratio * part for part in parts]
    return [1 - (1 - ratio) ** part for part in parts]


class GradualPruning(LivePruning):
    """Prunes in steps, at the start of every so many epochs; the best epoch is one after the last.

    Example::

        Trainer(max_epochs=40, callbacks=[GradualPruning(0.9, steps=4, every=5)])

    Args:
        ratio: the share of what the first network had that is gone after the last step.
        steps: how many there are, the first before training.
        every: epochs between two.
        schedule: a choice of `SCHEDULES`, see `shares`.
        network: see `LivePruning`.
        example: see `LivePruning`.
        options: see `LivePruning`.
        first: what the first step removed, where that is done already.
        importance: gives what the channels are ranked by, anew for each step: gradients of a
            network of before are none of the present one.
    """

    def __init__(
        self,
        ratio: float,
        steps: int,
        every: int = 1,
        schedule: str = "linear",
        network: str | None = None,
        example: Any = None,
        options: dict[str, Any] | None = None,
        first: PruningReport | None = None,
        importance: Callable[[], Importance] | None = None,
    ) -> None:
        super().__init__(network, example, options)
        if steps < 1 or every < 1 or schedule not in SCHEDULES:
            raise ConfigError(
                f"GradualPruning(steps={steps}, every={every}, schedule={schedule!r}) is not "
                f"allowed; allowed: numbers >= 1, {' or '.join(SCHEDULES)}"
            )
        self.shares, self.every = shares(ratio, steps, schedule), every
        self.importance = importance
        self.target = self.options.get("target", "channels")
        self.done, self.last_cut = 0, 0
        self.began: float | None = None
        self.left = 0.0
        if first is not None:
            self._note(first)

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take the next step, where it is due."""
        epoch = trainer.current_epoch
        if batch_idx or self.done >= len(self.shares) or epoch < self.done * self.every:
            return
        share = self.shares[self.done]
        rest = share if self.began is None else 1 - (1 - share) * self.began / self.left
        ranking = {} if self.importance is None else {"importance": self.importance()}
        self._note(self.prune(trainer, pl_module, batch, ratio=max(rest, 0.0), **ranking))
        self.last_cut = epoch
        for checkpoint in trainer.checkpoint_callbacks:
            if isinstance(checkpoint, ModelCheckpoint) and checkpoint.monitor:
                _forget_best(checkpoint)

    def _note(self, report: PruningReport) -> None:
        sizes = {
            "channels": (report.channels_dense, report.channels_pruned),
            "params": report.params,
            "macs": report.macs,
        }
        before, self.left = sizes[self.target]
        self.began = before if self.began is None else self.began
        self.done += 1

    def state_dict(self) -> dict[str, Any]:
        """How far it has come."""
        own = {key: getattr(self, key) for key in ("done", "last_cut", "began", "left")}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        super().load_state_dict(state_dict)
        for key in ("done", "last_cut", "began", "left"):
            setattr(self, key, state_dict[key])


def _forget_best(checkpoint: ModelCheckpoint) -> None:
    """A larger network's accuracy is none to compare with."""
    checkpoint.best_k_models, checkpoint.best_model_score = {}, None
    checkpoint.best_model_path = checkpoint.kth_best_model_path = ""

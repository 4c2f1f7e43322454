"""Training that gets cheaper as channels recede: they are removed as soon as they have."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rni_pl import norm
from rni_pl.callbacks.live_pruning import LivePruning
from rni_pl.errors import ConfigError, NothingToPruneError
from rni_pl.pruning import Importance, PruningReport


class Shrink(LivePruning):
    """Removes channels for good whose importance has stayed below a size for some epochs.

    RNI's gradient vanishes for a channel that has receded (arXiv 2204.06404, section 3), so that it
    stays down, and a one-shot cut would remove it anyway. To remove what has gone to zero while
    training goes on is PruneTrain's idea, for groups of weights (Lym et al., SC 2019).

    Example::

        Trainer(callbacks=[SparsityRegulariser(RNI(1e-4)), Shrink(every=1)])

    Args:
        every: so many epochs lie between two removals, at the start of an epoch.
        below: the importance, the size of an effective scale, under which a channel has receded.
        patience: so many epochs in a row it has to have been there.
        network: see `LivePruning`.
        example: see `LivePruning`.
        options: see `LivePruning`; ``coupled`` lets channels go that residual additions tie.
            Constants of plain BatchNorm are folded in (``absorb``).

    Attributes:
        receded: layer -> for how many epochs each of its channels has been below.
        report: what was removed last; None: nothing yet.
    """

    def __init__(
        self,
        every: int = 1,
        below: float = 0.01,
        patience: int = 1,
        network: str | None = None,
        example: Any = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(network, example, {"absorb": True, **(options or {})})
        if every < 1 or patience < 1 or not 0 < below < 0.5:
            raise ConfigError(
                f"Shrink(every={every}, below={below}, patience={patience}) is not allowed; "
                "allowed: epochs >= 1, 0 < below < 0.5"
            )
        self.every, self.below, self.patience = every, below, patience
        self.receded: dict[str, Tensor] = {}
        self.report: PruningReport | None = None

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Remove what has receded, before the first batch of an epoch."""
        epoch = trainer.current_epoch
        if batch_idx or not epoch or epoch % self.every or not self._any_may_go():
            return
        ranking = _Receded(self.receded, self.below, self.patience)
        try:
            self.report = self.prune(
                trainer, pl_module, batch, ratio=None, threshold=self.below, importance=ranking
            )
        except NothingToPruneError:
            return
        for name, kept in self.report.kept.items():
            self.receded[name] = self.receded[name][kept]

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Count the epochs that channels have been below."""
        for name, sizes in norm.scale_sizes(self.networks(trainer, pl_module)[0]).items():
            before = self.receded.get(name, torch.zeros(len(sizes), dtype=torch.long))
            self.receded[name] = torch.where((sizes < self.below).cpu(), before + 1, 0)

    def _any_may_go(self) -> bool:
        return any(bool((count >= self.patience).any()) for count in self.receded.values())

    def state_dict(self) -> dict[str, Any]:
        """The sizes of the network, for how long channels have been below, and what went."""
        receded = {name: count.tolist() for name, count in self.receded.items()}
        return {**super().state_dict(), "receded": receded}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        super().load_state_dict(state_dict)
        self.receded = {name: torch.tensor(each) for name, each in state_dict["receded"].items()}


class _Receded(Importance):
    """The size of the scale where a channel has receded for long enough; else above any limit."""

    of_scales = True

    def __init__(self, receded: Mapping[str, Tensor], below: float, patience: int) -> None:
        self.receded, self.below, self.patience = receded, below, patience

    def scores(self, name: str, layer: nn.Module) -> Tensor:
        sizes = norm.scale(layer).detach().abs().cpu()  # type: ignore[arg-type]
        gone = (self.receded[name] >= self.patience) & (sizes < self.below)
        return torch.where(gone, sizes, sizes + 1)

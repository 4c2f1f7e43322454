"""Pruning in the training of any LightningModule."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pytorch_lightning.plugins.io import CheckpointIO
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from rni_pl.callbacks.packages import BASES
from rni_pl.pruning import PruningReport, prune, prune_in_place, resize, structure_of

IMAGES = 2  # of the first batch, on which the network is run


class OneShotPruning(*BASES):  # type: ignore[misc]
    """Prunes the network before training, or at the start of an epoch in the middle of it.

    Parameters stay the same objects, so that optimisers and schedulers go on, with the moments of
    the channels that stay; averaged weights (Lightning's ``WeightAveraging``) lose the same
    channels. Checkpoints load into a network that is whole: for ``fit``, ``validate``, ``test`` and
    ``predict`` with ``ckpt_path=`` this callback gives the network its sizes before the weights
    come. ``load_from_checkpoint`` calls no callback; it needs one line in the module::

        def on_load_checkpoint(self, checkpoint):
            OneShotPruning.resize(self.model, checkpoint)

    Example::

        Trainer(callbacks=[SparsityRegulariser(RNI(1e-4)), OneShotPruning(0.5, at_epoch=80)])

    Args:
        ratio: the share of channels to remove, see `rni_pl.prune`.
        at_epoch: counted from 0; 0: before training.
        network: attribute of the module that is pruned; None: ``model``, or the module itself where
            it has none.
        example: what the network is run on: the arguments as `rni_pl.prune` takes them, or a
            function of a batch that gives them. None: the module's ``example_input_array``, or the
            first element of the first batch.
        options: further ones of `rni_pl.prune`, such as ``ignore``, ``coupled`` or ``importance``.

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
        super().__init__()
        self.ratio, self.at_epoch, self.network = ratio, at_epoch, network
        self.example, self.options = example, dict(options or {})
        self.report: PruningReport | None = None
        self._pruned: nn.Module | None = None

    @property
    def state_key(self) -> str:
        """Several that prune at different epochs have a state each."""
        return self._generate_state_key(at_epoch=self.at_epoch)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Have checkpoints give the network their sizes when they are read."""

        def resized(checkpoint: dict[str, Any]) -> None:
            for network in self._networks(trainer, pl_module):
                self.resize(network, checkpoint)

        plugin = trainer.strategy.checkpoint_io
        if not isinstance(plugin, _Resizing):
            trainer.strategy.checkpoint_io = _Resizing(plugin, resized)
        self._whole = self._networks(trainer, pl_module)[0]

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave the trainer as it was."""
        plugin = trainer.strategy.checkpoint_io
        if isinstance(plugin, _Resizing):
            trainer.strategy.checkpoint_io = plugin.inner

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Prune, before the first batch of its epoch."""
        if batch_idx or trainer.current_epoch != self.at_epoch or self._pruned is not None:
            return
        network, *averages = self._networks(trainer, pl_module)
        request = {"ratio": self.ratio, **self._example(pl_module, network, batch), **self.options}
        with _without_trainer(network):
            if trainer.world_size > 1:  # all remove what the first would
                plan = trainer.strategy.broadcast(prune(network, **request)[1].plan)
                request = {**request, "ratio": None, "plan": plan}
            self.report = prune_in_place(
                network, optimizers=trainer.optimizers, copies=averages, **request
            )
        self._pruned = network
        if hasattr(trainer.strategy, "configure_ddp"):  # its buckets have the sizes of before
            trainer.strategy.model = pl_module
            trainer.strategy.configure_ddp()

    def state_dict(self) -> dict[str, Any]:
        """The sizes of the network, once it is pruned."""
        return {} if self._pruned is None else {"structure": structure_of(self._pruned)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """It was pruned before."""
        if "structure" in state_dict:
            self._pruned = self._whole

    @staticmethod
    def resize(network: nn.Module, checkpoint: dict[str, Any]) -> None:
        """Give a network the sizes that it had when a checkpoint was written, in place.

        Raises:
            PruningError: it is another network.
        """
        for key, state in checkpoint.get("callbacks", {}).items():
            if key.startswith(OneShotPruning.__name__) and "structure" in state:
                resize(network, state["structure"])

    def _networks(self, trainer: Any, pl_module: Any) -> list[nn.Module]:
        """The network, and those that average its weights."""
        path = self.network
        if path is None:
            path = "model" if isinstance(getattr(pl_module, "model", None), nn.Module) else ""
        modules: list[nn.Module] = [pl_module]
        for callback in trainer.callbacks:
            average = getattr(callback, "_average_model", None)
            if average is not None:
                modules.append(getattr(average, "module", average))
        return [module.get_submodule(path) for module in modules]

    def _example(self, pl_module: Any, network: nn.Module, batch: Any) -> dict[str, Any]:
        """Arguments of `rni_pl.prune` for what the network is run on."""
        inputs: Any = self.example
        kwargs: dict[str, Any] = {}
        if callable(inputs) and not isinstance(inputs, nn.Module):
            inputs = inputs(batch)
        elif inputs is None and pl_module.example_input_array is not None:
            inputs = pl_module.example_input_array
            if isinstance(inputs, dict):  # Lightning's way to say keyword arguments
                inputs, kwargs = (), inputs
        elif inputs is None:
            inputs = batch[0] if isinstance(batch, list | tuple) else batch
        like = next(p for p in network.parameters() if p.is_floating_point())

        def few(x: Tensor) -> Tensor:
            x = x[:IMAGES] if x.ndim else x
            return x.to(like) if x.is_floating_point() else x.to(like.device)

        inputs, kwargs = pytree.tree_map_only(Tensor, few, (inputs, kwargs))
        return {"example_inputs": inputs, "example_kwargs": kwargs}


class _Resizing(CheckpointIO):
    """A checkpoint plugin that says what was read, before Lightning loads any of it."""

    def __init__(self, inner: Any, read: Callable[[dict[str, Any]], None]) -> None:
        self.inner, self.read = inner, read

    def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        self.inner.save_checkpoint(checkpoint, path, storage_options)

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        checkpoint = self.inner.load_checkpoint(path, *args, **kwargs)
        self.read(checkpoint)
        return checkpoint

    def remove_checkpoint(self, path: Any) -> None:
        self.inner.remove_checkpoint(path)

    def teardown(self) -> None:
        self.inner.teardown()


@contextmanager
def _without_trainer(network: Any) -> Iterator[None]:
    """A module that is pruned itself is copied, and its trainer is none of the network."""
    trainer = vars(network).get("_trainer")
    if trainer is not None:
        network._trainer = None
    try:
        with torch.enable_grad():
            yield
    finally:
        if trainer is not None:
            network._trainer = trainer

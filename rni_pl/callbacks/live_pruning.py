"""Pruning a network while it is trained: what the callbacks that do so have in common."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pytorch_lightning.plugins.io import CheckpointIO
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from rni_pl import norm
from rni_pl.callbacks.packages import BASES
from rni_pl.errors import ConfigError
from rni_pl.pruning import PruningReport, prune, prune_in_place, resize, structure_of

IMAGES = 2  # of the first batch, on which the network is run


class LivePruning(*BASES):  # type: ignore[misc]
    """Finds the network and what to run it on, prunes it in place, and has its checkpoints load.

    Parameters stay the same objects, so that optimisers and schedulers go on; averaged weights
    (Lightning's ``WeightAveraging``) lose the same channels. Checkpoints load into a network that
    is whole: for ``fit``, ``validate``, ``test`` and ``predict`` with ``ckpt_path=`` the network is
    given its sizes before the weights come. ``load_from_checkpoint`` calls no callback; it needs
    one line in the module::

        def on_load_checkpoint(self, checkpoint):
            OneShotPruning.resize(self.model, checkpoint)

    A module with a method ``on_pruned(report, gone)`` is told.

    Args:
        network: attribute of the module that is pruned; None: ``model``, or the module itself where
            it has none.
        example: what the network is run on: the arguments as `rni_pl.prune` takes them, or a
            function of a batch that gives them. None: the module's ``example_input_array``, or the
            first element of the first batch.
        options: further ones of `rni_pl.prune`, such as ``ignore``, ``coupled`` or ``importance``.

    Attributes:
        gone: norm layer -> the sizes of the scales that its channels had when they went.
    """

    def __init__(
        self, network: str | None = None, example: Any = None, options: dict[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.network, self.example, self.options = network, example, dict(options or {})
        self._whole: nn.Module | None = None
        self._io: _Resizing | None = None
        self.is_pruned = False
        self.gone: dict[str, list[float]] = {}

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Have checkpoints give the network their sizes when they are read."""

        def read(checkpoint: dict[str, Any]) -> None:
            state = checkpoint.get("callbacks", {}).get(self.state_key) or {}
            for network in self.networks(trainer, pl_module):
                resize(network, state.get("structure", {}))

        if trainer.world_size > 1 and not hasattr(trainer.strategy, "configure_ddp"):
            raise ConfigError(
                f"{type(self).__name__} cannot prune under {type(trainer.strategy).__name__}; "
                "allowed: ddp"
            )
        if self._io is None or trainer.strategy.checkpoint_io is not self._io:
            self._io = _Resizing(trainer.strategy.checkpoint_io, read)
            trainer.strategy.checkpoint_io = self._io
        self._whole = self.networks(trainer, pl_module)[0]

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave the trainer as it was."""
        if self._io is not None and trainer.strategy.checkpoint_io is self._io:
            trainer.strategy.checkpoint_io = self._io.inner

    def state_dict(self) -> dict[str, Any]:
        """The sizes of the network, once it is pruned."""
        if not self.is_pruned or self._whole is None:
            return {}
        return {"structure": structure_of(self._whole), "gone": self.gone}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """It was pruned before."""
        self.is_pruned = "structure" in state_dict
        self.gone = state_dict.get("gone", {})

    @staticmethod
    def resize(network: nn.Module, checkpoint: dict[str, Any]) -> None:
        """Give a network the sizes that it had when a checkpoint was written, in place.

        Raises:
            PruningError: it is another network.
        """
        for state in checkpoint.get("callbacks", {}).values():
            if isinstance(state, dict) and "structure" in state:
                resize(network, state["structure"])

    def prune(self, trainer: Any, pl_module: Any, batch: Any, **request: Any) -> PruningReport:
        """Prune the network in place, the same in every process, see `rni_pl.prune_in_place`."""
        network, *averages = self.networks(trainer, pl_module)
        request = {**self._example(pl_module, network, batch), **self.options, **request}
        sizes = norm.scale_sizes(network)
        with _without_trainer(network):
            if trainer.world_size > 1:  # all remove what the first would
                planned = prune(network, **request)[1].plan
                request |= {"plan": trainer.strategy.broadcast(planned)}
                request |= {"ratio": None, "threshold": None}
            report = prune_in_place(
                network, optimizers=trainer.optimizers, copies=averages, **request
            )
        self.is_pruned = True
        for name, kept in report.kept.items():
            if name in sizes and len(kept) < len(sizes[name]):
                gone = set(range(len(sizes[name]))) - set(kept)
                self.gone.setdefault(name, []).extend(sizes[name][sorted(gone)].tolist())
        if hasattr(trainer.strategy, "configure_ddp"):  # its buckets have the sizes of before
            trainer.strategy.model = pl_module
            trainer.strategy.configure_ddp()
        if callable(told := getattr(pl_module, "on_pruned", None)):
            told(report, self.gone)
        return report

    def networks(self, trainer: Any, pl_module: Any) -> list[nn.Module]:
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
            inputs = _few(batch[0] if isinstance(batch, list | tuple) else batch)
        like = next(p for p in network.parameters() if p.is_floating_point())

        def of_its_kind(x: Tensor) -> Tensor:
            return x.to(like) if x.is_floating_point() else x.to(like.device)

        inputs, kwargs = pytree.tree_map_only(Tensor, of_its_kind, (inputs, kwargs))
        return {"example_inputs": inputs, "example_kwargs": kwargs}


def _few(inputs: Any) -> Any:
    """The first images of a batch: of a list of them, or of tensors in whatever holds them."""
    if isinstance(inputs, list):
        return inputs[:IMAGES]
    return pytree.tree_map_only(Tensor, lambda x: x[:IMAGES] if x.ndim else x, inputs)


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

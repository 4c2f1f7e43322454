"""The one LightningModule: any classifier, its loss, its metrics and its recipe."""

import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from rni_pl import cost
from rni_pl.norm import scaled_norms
from rni_pl.pruning import PruningReport, resize, structure_of
from rni_pl.runs import checkpoint
from rni_pl.runs.spec import ModelSpec, build
from rni_pl.training.losses import CrossEntropy, Loss
from rni_pl.training.recipe import Recipe

LOGGED = ("train/loss", "train/acc", "val/loss", "val/acc")  # after every epoch
AUXILIARY = 0.3  # weight of an auxiliary head's loss (GoogLeNet: Szegedy et al. 2015, section 5)


class Classifier(pl.LightningModule):
    """A classification network under training.

    Args:
        spec: description of the network, as of `ModelSpec.to_dict`; kept in every checkpoint.
        recipe: optimiser and schedule; None: the paper's.
        module: the network itself, if it is built already; otherwise it is built from `spec`.

    `loss` is what is trained for: the cross-entropy, unless a caller sets another.

    Logs, once an epoch, ``{train,val,test}/loss`` and ``/acc`` (fraction in [0, 1]). A second
    validation loader is logged as the test set, for watching only.
    """

    def __init__(
        self,
        spec: dict[str, Any],
        recipe: Recipe | None = None,
        module: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters({"spec": spec})
        self.recipe = Recipe() if recipe is None else recipe
        self.model = build(ModelSpec(**spec)) if module is None else module
        self.loss: Loss = CrossEntropy()
        self.metrics = nn.ModuleDict(
            {f"{stage}_metrics": _metrics(stage, spec) for stage in ("train", "val", "test")}
        )

    @property
    def spec(self) -> ModelSpec:
        """Description of the network as it is now."""
        return ModelSpec(**self.hparams["spec"])

    def replace_model(self, model: nn.Module) -> None:
        """Take a pruned network in place of the present one; checkpoints will rebuild it."""
        self.model = model
        self.update_spec(structure=structure_of(model))

    def shrinks(self) -> None:
        """Note what the network begins with, before channels go while it is trained."""
        widths = {name: layer.num_features for name, layer in scaled_norms(self.model)}
        macs = cost.macs(self.model, self.spec.image_shape)
        born = {"params": cost.parameter_count(self.model), "macs": macs, "widths": widths}
        self.update_spec(structure=structure_of(self.model), born={**born, "gone": []})

    def on_pruned(self, report: PruningReport, gone: dict[str, list[float]]) -> None:
        """Have checkpoints build the network as it is now, see `LivePruning`."""
        self.update_spec(structure=structure_of(self.model))
        if self.spec.born:
            self.spec.born["gone"] = [size for sizes in gone.values() for size in sizes]

    def take_sizes(self, file: str | Path) -> dict[str, Any]:
        """Those of a checkpoint of this very run, whose contents it gives."""
        contents = checkpoint.read_own(file)
        spec = checkpoint.spec_of(contents)
        if spec.structure:
            resize(self.model, spec.structure)
            self.update_spec(structure=spec.structure, born=spec.born)
        return contents

    def take_weights(self, file: str | Path) -> None:
        """Those of a checkpoint of this very run, and its sizes: channels may have gone since."""
        contents = self.take_sizes(file)
        checkpoint.load_weights(self.model, checkpoint.weights_of(contents["state_dict"]))

    def update_spec(self, **values: Any) -> None:
        """Change the description of the network, which checkpoints carry; `spec` is a copy."""
        self.hparams["spec"].update(values)

    def setup(self, stage: str) -> None:
        """Lay weights out channels-last, the faster order for convolutions on CPU and GPU."""
        self.model.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of normalised images (N, 3, H, W)."""
        return self.model(images)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of one batch."""
        images, labels = batch
        output = self(images)
        if isinstance(output, Tensor):
            output = (output,)
        # In training mode some networks put auxiliary heads beside the logits.
        losses = [self.loss(images, logits, labels) for logits in output if logits is not None]
        self._update("train", losses[0], output[0], labels)
        return (losses[0] + AUXILIARY * sum(losses[1:])) * self._weight(len(labels))

    def _weight(self, rows: int) -> Tensor | float:
        """What makes the mean of the processes' losses that of all images, if shares differ."""
        world_size = self.trainer.world_size
        if world_size == 1:
            return 1.0
        total = torch.tensor(float(rows), device=self.device)
        dist.all_reduce(total)
        return rows * world_size / total

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Metrics of the validation set; of the test set, if a second loader watches it."""
        self._evaluate("test" if dataloader_idx else "val", batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Metrics of the test set."""
        self._evaluate("test", batch)

    def on_train_epoch_end(self) -> None:
        """Log the epoch's training metrics."""
        self._log("train")

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of every set that was evaluated."""
        self._log("val")
        self._log("test")

    def on_test_epoch_end(self) -> None:
        """Log the test metrics."""
        self._log("test")

    def configure_optimizers(self) -> Any:
        """The recipe's optimiser, with its schedule by step."""
        optimizer = self._optimizer()
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = self.recipe.scheduler(optimizer, steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "lr"},
        }

    def _optimizer(self) -> torch.optim.Optimizer:
        # Fused SGD unscales gradients within its step: penalty and clipping would come too early.
        # Lightning does not let it clip in mixed precision even where nothing is scaled.
        plugin = self.trainer.precision_plugin
        scales_loss = getattr(plugin, "scaler", None) is not None
        clips = isinstance(plugin, MixedPrecision) and bool(self.trainer.gradient_clip_val)
        return self.recipe.optimizer_of(self.model, fused=not (scales_loss or clips))

    def on_train_start(self) -> None:
        """Have a run that goes on follow the recipe as it is now, not the one it was saved with."""
        (config,) = self.trainer.lr_scheduler_configs
        optimizer = self._optimizer()
        schedule = self.recipe.scheduler(optimizer, int(self.trainer.estimated_stepping_batches))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of steps of the schedule without the optimiser's
            for _ in range(self.trainer.global_step):
                schedule.step()
        for mine, fresh in zip(
            self.trainer.optimizers[0].param_groups, optimizer.param_groups, strict=True
        ):
            mine.update({key: value for key, value in fresh.items() if key != "params"})
        config.scheduler.load_state_dict(schedule.state_dict())

    def on_save_checkpoint(self, checkpoint_: dict[str, Any]) -> None:
        """Keep which layers have scales, and what all devices counted so far in this epoch."""
        checkpoint_["scaled"] = [name for name, _ in scaled_norms(self.model)]
        checkpoint_["train_metrics"] = {}
        metrics: Any = self.metrics["train_metrics"]
        for key, metric in metrics.items():
            with metric.sync_context():
                checkpoint_["train_metrics"][key] = metric.metric_state

    def on_load_checkpoint(self, checkpoint_: dict[str, Any]) -> None:
        """Refuse foreign checkpoints and those that name code, on every path into Lightning."""
        checkpoint.check(checkpoint_, "the one given", allow=[self.spec.arch.get("_target_", "")])
        if self.global_rank:
            return  # the sum over all devices is one device's to go on with
        metrics: Any = self.metrics["train_metrics"]
        for key, state in checkpoint_.get("train_metrics", {}).items():
            for name, value in state.items():
                setattr(metrics[key], name, value.to(self.device))

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: str | Path,
        map_location: Any = None,
        allow: Collection[str] = (),
        **overrides: Any,
    ) -> "Classifier":
        """Rebuild module and network, dense or pruned, from one of our checkpoints.

        Lightning's signature; `overrides` are further arguments (``recipe=...``), and `allow`
        names further networks that the checkpoint may build, see `rni_pl.load_model`. Only plain
        data is ever read, whatever ``weights_only`` says.
        """
        for ignored in ("weights_only", "strict", "hparams_file"):
            overrides.pop(ignored, None)
        contents = checkpoint.read(checkpoint_path, allow)
        spec = checkpoint.spec_of(contents)
        model = checkpoint.build_with_weights(spec, contents["state_dict"], checkpoint_path)
        module = cls(contents["hyper_parameters"]["spec"], **overrides, module=model)
        return module if map_location is None else module.to(map_location)

    def _evaluate(self, stage: str, batch: Any) -> None:
        images, labels = batch
        logits = self(images)
        self._update(stage, F.cross_entropy(logits, labels, reduction="none"), logits, labels)

    def _update(self, stage: str, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        metrics: Any = self.metrics[f"{stage}_metrics"]
        metrics[f"{stage}/loss"].update(loss.detach(), weight=len(labels) if loss.ndim == 0 else 1)
        metrics[f"{stage}/acc"].update(logits.detach(), labels)

    def _log(self, stage: str) -> None:
        metrics: Any = self.metrics[f"{stage}_metrics"]
        if metrics[f"{stage}/acc"].update_called:
            self.log_dict(metrics.compute(), prog_bar=stage == "val")
        metrics.reset()


def _metrics(stage: str, spec: dict[str, Any]) -> MetricCollection:
    accuracy = MulticlassAccuracy(spec["num_classes"], average="micro", validate_args=False)
    return MetricCollection(
        {f"{stage}/loss": MeanMetric(nan_strategy="disable"), f"{stage}/acc": accuracy},
        compute_groups=False,
    )

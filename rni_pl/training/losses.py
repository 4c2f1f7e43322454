"""What a classifier is trained for: cross-entropy, and distillation on top of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rni_pl.data import ClassificationData
from rni_pl.errors import ConfigError

# A loss of images (N, 3, H, W), logits (N, classes) and labels (N,).
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass
class CrossEntropy:
    """The mean cross-entropy of a batch.

    Attributes:
        label_smoothing: share of each label that is spread over all classes, in [0, 1).
        class_weights: by which an image of each class counts; None: all count the same. The sum is
            divided by the number of images, so that it does not depend on how a batch is split.
    """

    label_smoothing: float = 0.0
    class_weights: Tensor | None = None

    def __call__(self, images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch: images (N, 3, H, W), logits (N, classes), labels (N,)."""
        smooth = self.label_smoothing
        if self.class_weights is None:
            return F.cross_entropy(logits, labels, label_smoothing=smooth)
        weights = self.class_weights = self.class_weights.to(logits)
        total = F.cross_entropy(logits, labels, weights, reduction="sum", label_smoothing=smooth)
        return total / len(labels)

    @classmethod
    def of(
        cls,
        data: ClassificationData,
        label_smoothing: float = 0.0,
        class_weights: str | Sequence[float] | None = None,
    ) -> "CrossEntropy":
        """As configured; ``"balanced"`` weighs each class by ``images / (classes * its images)``.

        Raises:
            ConfigError: there are not as many weights as classes.
        """
        if class_weights is None:
            return cls(label_smoothing)
        if class_weights == "balanced":
            counts = data.train.labels.bincount(minlength=data.num_classes).clamp_min(1)
            return cls(label_smoothing, len(data.train) / (data.num_classes * counts.float()))
        if len(class_weights) != data.num_classes:
            raise ConfigError(
                f"loss.class_weights has {len(class_weights)} numbers, for {data.num_classes} "
                "classes"
            )
        return cls(label_smoothing, torch.tensor([float(w) for w in class_weights]))


@dataclass
class Distillation:
    """A loss that also compares with a teacher's softened outputs.

    ``(1 - weight) * hard(labels) + weight * T^2 * KL(teacher / T || logits / T)``

    Source: Hinton, Vinyals & Dean 2015, arXiv 1503.02531, section 2.

    Attributes:
        teacher: the unpruned network; it is kept in evaluation mode.
        weight: share of the comparison in the loss, in [0, 1].
        temperature: softens both outputs, > 0.
        hard: the loss by labels.
    """

    teacher: nn.Module
    weight: float = 0.5
    temperature: float = 4.0
    hard: Loss = field(default_factory=CrossEntropy)

    def __call__(self, images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch: images (N, 3, H, W), logits (N, classes), labels (N,)."""
        self.teacher.eval().to(images.device, images.dtype).to(memory_format=torch.channels_last)
        with torch.no_grad():
            wanted = F.log_softmax(self.teacher(images).float() / self.temperature, dim=1)
        found = F.log_softmax(logits.float() / self.temperature, dim=1)
        apart = F.kl_div(found, wanted, reduction="batchmean", log_target=True)
        hard = self.hard(images, logits, labels)
        return (1 - self.weight) * hard + self.weight * self.temperature**2 * apart

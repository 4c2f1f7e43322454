"""Learning from the unpruned network while fine-tuning."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass
class Distillation:
    """A loss that also compares with a teacher's softened outputs.

    ``(1 - weight) * CE(logits, labels) + weight * T^2 * KL(teacher / T || logits / T)``

    Source: Hinton, Vinyals & Dean 2015, arXiv 1503.02531, section 2.

    Attributes:
        teacher: the unpruned network; it is kept in evaluation mode.
        weight: share of the comparison in the loss, in [0, 1].
        temperature: softens both outputs, > 0.
    """

    teacher: nn.Module
    weight: float = 0.5
    temperature: float = 4.0

    def __call__(self, images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch: images (N, 3, H, W), logits (N, classes), labels (N,)."""
        self.teacher.eval().to(images.device, images.dtype).to(memory_format=torch.channels_last)
        with torch.no_grad():
            wanted = F.log_softmax(self.teacher(images).float() / self.temperature, dim=1)
        found = F.log_softmax(logits.float() / self.temperature, dim=1)
        apart = F.kl_div(found, wanted, reduction="batchmean", log_target=True)
        hard = F.cross_entropy(logits, labels)
        return (1 - self.weight) * hard + self.weight * self.temperature**2 * apart

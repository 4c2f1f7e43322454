"""The reference recipe as a plain PyTorch loop: what a user would run instead.

Float32, contiguous tensors, torchvision's transforms image by image in one worker process, batch
64, the penalty in the loss. Of rni_pl it takes only the network and the penalty.
"""

import sys
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from turns import Turn

from rni_pl import models, regularisers
from rni_pl.norm import scaled_norms
from rni_pl.regularisers import Regulariser

BATCH = 64
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


class PerImage(TensorDataset):
    """uint8 images (N, 3, H, W), one by one through torchvision's transforms."""

    def __init__(self, images: Tensor, labels: Tensor, augment: bool = True) -> None:
        from torchvision import transforms as t

        super().__init__(images.permute(0, 2, 3, 1).contiguous(), labels)
        crop = [t.RandomCrop(images.shape[-1], padding=4), t.RandomHorizontalFlip()]
        finish = [t.ToTensor(), t.Normalize(MEAN, STD)]
        self.transform = t.Compose([t.ToPILImage(), *(crop if augment else []), *finish])

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, label = super().__getitem__(index)
        return self.transform(image.numpy()), label


def optimizer_of(model: nn.Module, lr: float = 0.1) -> torch.optim.Optimizer:
    """SGD as in the paper: the scales of SigBN learn ten times faster, without decay."""
    sigbn = {id(m.weight) for _, m in scaled_norms(model) if m.bias is None}
    rest = [p for p in model.parameters() if id(p) not in sigbn]
    scales = [p for p in model.parameters() if id(p) in sigbn]
    groups: list[dict] = [{"params": rest}, {"params": scales, "lr": 10 * lr, "weight_decay": 0}]
    return torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True, weight_decay=1e-4)


def steps(
    model: nn.Module, regulariser: Regulariser, images: Tensor, labels: Tensor
) -> Iterator[torch.optim.Optimizer]:
    """Train for ever; yields the optimiser after every step."""
    optimizer = optimizer_of(model.train())
    loader = DataLoader(PerImage(images, labels), BATCH, shuffle=True, num_workers=1)
    while True:
        for batch, truth in loader:
            scales = torch.cat([norm.weight for _, norm in scaled_norms(model)])
            loss = F.cross_entropy(model(batch), truth) + regulariser.penalty(scales)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield optimizer


def random_images(count: int) -> tuple[Tensor, Tensor]:
    """As many CIFAR-sized images of noise, with labels."""
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)
    return images, torch.randint(0, 10, (count,))


def main() -> None:
    """Take turns: reference.py ARCH PENALTY WEIGHT SHIFT IMAGES."""
    arch, penalty, images = sys.argv[1], sys.argv[2], int(sys.argv[-1])
    values = [float(value) for value in sys.argv[3:-1]]
    regulariser = getattr(regularisers, penalty)(*values)
    model = getattr(models, arch)(norm=regulariser.norm)
    turn = Turn()
    for _ in steps(model, regulariser, *random_images(images)):
        turn.step()


if __name__ == "__main__":
    main()

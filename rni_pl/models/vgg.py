"""VGG-16 with BatchNorm for 32x32 images (Simonyan & Zisserman, ICLR 2015)."""

from torch import Tensor, nn

from rni_pl.models.init import initialise

# Widths of the 13 convolutions; M is a 2x2 max-pool.
VGG16 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512)


class CifarVGG(nn.Module):
    """13 convolutions, four max-pools, one average pool and one linear layer."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.features = features()
        self.avgpool = nn.AvgPool2d(2)
        self.classifier = nn.Linear(512, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, 3, 32, 32) to logits (N, num_classes)."""
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


def features() -> nn.Sequential:
    """The convolutional part, in torchvision's order: conv, bn, relu."""
    layers: list[nn.Module] = []
    channels = 3
    for width in VGG16:
        if isinstance(width, str):
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width)]
        layers.append(nn.ReLU(inplace=True))
        channels = width
    return nn.Sequential(*layers)


def vgg16(num_classes: int = 10, norm: str = "bn") -> nn.Module:
    """VGG-16 for CIFAR; `norm` is ``"bn"`` or ``"sigbn"``."""
    return initialise(CifarVGG(num_classes), norm)

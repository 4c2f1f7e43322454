"""CIFAR ResNets with option A shortcuts (He et al., CVPR 2016, section 4.2)."""

from torch import Tensor, nn

from rni_pl.models.init import initialise


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = option_a(channels - in_channels, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, channels, H / stride, W / stride)."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y + self.shortcut(x))


def option_a(new_channels: int, stride: int) -> nn.Sequential:
    """Subsample, then pad with zero channels, half of them in front and half behind."""
    front = new_channels // 2
    return nn.Sequential(
        nn.AvgPool2d(1, stride),  # a window of one pixel: plain subsampling
        nn.ConstantPad3d((0, 0, 0, 0, front, new_channels - front), 0.0),
    )


class CifarResNet(nn.Module):
    """Three stages of `depth` basic blocks with 16, 32 and 64 channels, for 32x32 images.

    Parameter names follow torchvision: ``conv1, bn1, layer1.0.conv1, ..., fc``.
    """

    def __init__(self, depth: int, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = stage(16, 16, depth, stride=1)
        self.layer2 = stage(16, 32, depth, stride=2)
        self.layer3 = stage(32, 64, depth, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to logits (N, num_classes)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.avgpool(x).flatten(1))


def stage(in_channels: int, channels: int, depth: int, stride: int) -> nn.Sequential:
    """`depth` blocks, the first of which changes width and resolution."""
    first = BasicBlock(in_channels, channels, stride)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(depth - 1)))


def resnet20(num_classes: int = 10, norm: str = "bn") -> nn.Module:
    """ResNet-20 for CIFAR; `norm` is ``"bn"`` or ``"sigbn"``."""
    return initialise(CifarResNet(3, num_classes), norm)


def resnet32(num_classes: int = 10, norm: str = "bn") -> nn.Module:
    """ResNet-32 for CIFAR; `norm` is ``"bn"`` or ``"sigbn"``."""
    return initialise(CifarResNet(5, num_classes), norm)


def resnet44(num_classes: int = 10, norm: str = "bn") -> nn.Module:
    """ResNet-44 for CIFAR; `norm` is ``"bn"`` or ``"sigbn"``."""
    return initialise(CifarResNet(7, num_classes), norm)


def resnet56(num_classes: int = 10, norm: str = "bn") -> nn.Module:
    """ResNet-56 for CIFAR; `norm` is ``"bn"`` or ``"sigbn"``."""
    return initialise(CifarResNet(9, num_classes), norm)


def resnet110(num_classes: int = 10, norm: str = "bn") -> nn.Module:
    """ResNet-110 for CIFAR; `norm` is ``"bn"`` or ``"sigbn"``."""
    return initialise(CifarResNet(18, num_classes), norm)

"""Networks of a user's, for the tests."""

from torch import Tensor, nn


class Dropping(nn.Module):
    """Two convolutions, and dropout between them."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, stride=4), nn.BatchNorm2d(8)
        self.dropout = nn.Dropout(0.3)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(self.bn1(self.conv1(x)).relu())
        return self.fc(self.bn2(self.conv2(x)).relu().mean((2, 3)))

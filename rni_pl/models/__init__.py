"""The networks of the paper, plain modules that know nothing of pruning."""

from rni_pl.models.resnet import resnet20, resnet32, resnet44, resnet56, resnet110
from rni_pl.models.vgg import vgg16

__all__ = ["resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "vgg16"]

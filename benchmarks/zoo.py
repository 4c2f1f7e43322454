"""Networks of others that pruning is tried on, in the tests and in the tables of the docs."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from rni_pl import load_model
from rni_pl.norm import scaled_norms
from rni_pl.pruning.structure import structure_of
from rni_pl.runs.spec import ModelSpec, build
from rni_pl.training.module import Classifier

CLASSES = 10


@dataclass(frozen=True)
class Entry:
    """A network by name, how it is built, and the height of the small images it is tried on."""

    name: str
    target: str
    size: int = 32
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def spec(self) -> ModelSpec:
        """What a checkpoint says of it."""
        arch = {"_target_": self.target, **self.options}
        return ModelSpec(arch, CLASSES, image_shape=[3, self.size, self.size])

    def build(self, seed: int = 0) -> nn.Module:
        """The network with random scales, biases and running statistics, as after training."""
        torch.manual_seed(seed)
        return randomise(build(self.spec)).eval()

    def images(self, count: int = 2) -> torch.Tensor:
        """Random images."""
        return torch.randn(count, 3, self.size, self.size)


def randomise(model: nn.Module) -> nn.Module:
    """Random scales, biases and running statistics, as after training."""
    for _, norm in scaled_norms(model):
        nn.init.normal_(norm.weight)
        if norm.bias is not None:
            nn.init.normal_(norm.bias)
        norm.running_mean.normal_()  # type: ignore[union-attr]
        norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return model


def through_checkpoint(spec: ModelSpec, model: nn.Module, file: Path) -> nn.Module:
    """The network as `load_model` finds it in a checkpoint that Lightning wrote."""
    classifier = Classifier(spec.to_dict(), module=model)
    classifier.hparams["spec"]["structure"] = structure_of(model)
    trainer = pl.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.strategy.connect(classifier)
    trainer.save_checkpoint(file)
    return load_model(file)


def _ours(name: str) -> Entry:
    return Entry(name, f"rni_pl.models.{name}")


def _torchvision(name: str, size: int = 32, **options: Any) -> Entry:
    return Entry(name, f"torchvision.models.{name}", size, options)


def _timm(name: str, size: int = 64) -> Entry:
    return Entry(name, "timm.create_model", size, {"model_name": name})


# Auxiliary heads need large images, and torchvision draws these initial weights slowly.
PLAIN = {"aux_logits": False, "init_weights": False}

OURS = [_ours("resnet56"), _ours("vgg16")]
TORCHVISION = [
    _torchvision("resnet18"), _torchvision("resnet50"), _torchvision("resnext50_32x4d"),
    _torchvision("wide_resnet50_2"), _torchvision("vgg16_bn"), _torchvision("mobilenet_v2"),
    _torchvision("mobilenet_v3_large"), _torchvision("efficientnet_b0"),
    _torchvision("densenet121"), _torchvision("shufflenet_v2_x1_0"),
    _torchvision("regnet_y_400mf"), _torchvision("googlenet", **PLAIN),
    _torchvision("inception_v3", 75, **PLAIN), _torchvision("mnasnet1_0"),
]  # fmt: skip
# One of each family of timm that has BatchNorm.
TIMM = [
    _timm("resnet18"), _timm("resnet50d"), _timm("seresnet50"), _timm("ecaresnet50t"),
    _timm("resnetrs50"), _timm("res2net50_26w_4s"), _timm("resnest14d"), _timm("skresnet18"),
    _timm("legacy_seresnet18"), _timm("gcresnet33ts"), _timm("resnetblur50"), _timm("densenet121"),
    _timm("mobilenetv2_100"), _timm("mobilenetv3_small_050"), _timm("mobilenetv4_conv_small"),
    _timm("mnasnet_100"), _timm("efficientnet_b0"), _timm("tf_efficientnetv2_b0"),
    _timm("mixnet_s"), _timm("spnasnet_100"), _timm("fbnetc_100"), _timm("ghostnet_100"),
    _timm("ghostnetv2_100"), _timm("lcnet_050"), _timm("tinynet_e"), _timm("hardcorenas_a"),
    _timm("rexnet_100"), _timm("regnetx_002"), _timm("regnety_002"), _timm("regnetz_b16"),
    _timm("dla34"), _timm("dpn68"), _timm("hrnet_w18_small"), _timm("xception41"),
    _timm("selecsls42"), _timm("cspresnet50"), _timm("darknet53"), _timm("cs3darknet_s"),
    _timm("ese_vovnet19b_dw"), _timm("hgnet_tiny"), _timm("hgnetv2_b0"), _timm("tresnet_m"),
    _timm("resnetv2_50"), _timm("repghostnet_050"), _timm("semnasnet_050"), _timm("gernet_s"),
    _timm("repvit_m0_9", 224), _timm("test_efficientnet"), _timm("vgg11_bn"),
    _timm("mobilevit_xxs"), _timm("efficientvit_b0"), _timm("efficientvit_m0", 224),
    _timm("starnet_s1"),
]  # fmt: skip
# In these residual additions tie whatever has a scale: only coupled=true prunes them.
COUPLED = [_timm("repvgg_a0"), _timm("mobileone_s0")]
EVERYTHING = [*OURS, *TORCHVISION, *TIMM, *COUPLED]


def find(name: str) -> Entry:
    """The network of this name; torchvision's before timm's."""
    return next(entry for entry in EVERYTHING if entry.name == name)

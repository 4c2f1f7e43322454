"""Networks of other packages that pruning is tried on: segmentation, video, detection, medical.

What a suite needs is imported when the suite is asked for, and only then. Nothing of it is an extra
of rni_pl or in its CI: Ultralytics is under the AGPL-3.0.
"""

import importlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@dataclass(frozen=True)
class Subject:
    """A network by name, how it is built, and what it is tried on.

    Attributes:
        make: builds it, each time with the same layers.
        shape: of the random input.
        listed: the input is a list of images, each with a dictionary of `targets` in training.
        sorted: the outputs are sorted by score, so that the last digit decides on their order.
        targets: name -> what a detector is trained with, for one image.
    """

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    listed: bool = False
    sorted: bool = False
    targets: dict[str, Tensor] = field(default_factory=dict)

    def build(self, seed: int = 0) -> nn.Module:
        """The network with random scales, biases and running statistics, as after training."""
        torch.manual_seed(seed)
        model = self.make()
        for norm in norms_of(model):
            if norm.affine:
                nn.init.uniform_(norm.weight, 0.1, 1)
                nn.init.normal_(norm.bias, 0, 0.1)
            if isinstance(norm.running_mean, Tensor) and isinstance(norm.running_var, Tensor):
                norm.running_mean.normal_(0, 0.1)
                norm.running_var.uniform_(0.5, 1.5)
        return model.eval()

    def inputs(self) -> tuple[Any, ...]:
        """The positional arguments of the forward pass."""
        x = torch.rand(self.shape)
        return (list(x),) if self.listed else (x,)


def norms_of(model: nn.Module) -> list[Any]:
    """Every BatchNorm of any rank."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


@dataclass(frozen=True)
class Suite:
    """Networks of one package.

    Attributes:
        title: of its table.
        package: what to install, and under which licence.
        subjects: gives the networks; imports the package.
    """

    title: str
    package: str
    subjects: Callable[[], Iterator[Subject]]


def _torchvision() -> Iterator[Subject]:
    models = importlib.import_module("torchvision.models")
    for name in (
        "fcn_resnet50", "deeplabv3_resnet50", "deeplabv3_mobilenet_v3_large",
        "lraspp_mobilenet_v3_large",
    ):  # fmt: skip
        make = partial(getattr(models.segmentation, name), weights=None, weights_backbone=None)
        yield Subject(name, make, (2, 3, 96, 96))
    for name in ("r3d_18", "mc3_18", "r2plus1d_18"):
        yield Subject(name, partial(getattr(models.video, name), weights=None), (2, 3, 8, 64, 64))
    yield Subject("s3d", partial(models.video.s3d, weights=None), (2, 3, 16, 224, 224))
    for name, size in (("efficientnet_v2_s", 64), ("regnet_x_400mf", 64), ("maxvit_t", 224)):
        yield Subject(name, partial(getattr(models, name), weights=None), (2, 3, size, size))


def _detection() -> Iterator[Subject]:
    detection = importlib.import_module("torchvision.models.detection")
    boxes = torch.tensor([[20.0, 20.0, 90.0, 100.0]])
    targets = {"boxes": boxes, "labels": torch.tensor([1])}
    more = {
        "maskrcnn_resnet50_fpn": {"masks": torch.ones(1, 128, 128, dtype=torch.uint8)},
        "keypointrcnn_resnet50_fpn": {"keypoints": torch.full((1, 17, 3), 50.0)},
    }
    for name in (
        "fasterrcnn_resnet50_fpn", "fasterrcnn_mobilenet_v3_large_320_fpn",
        "retinanet_resnet50_fpn", "fcos_resnet50_fpn", "ssdlite320_mobilenet_v3_large",
        "maskrcnn_resnet50_fpn", "keypointrcnn_resnet50_fpn",
    ):  # fmt: skip
        options: dict[str, float] = (
            {} if name.startswith("ssd") else {"min_size": 128, "max_size": 128}
        )
        # With random weights nothing is over the thresholds, and no output could be compared.
        options["box_score_thresh" if "rcnn" in name else "score_thresh"] = 0.0
        make = partial(getattr(detection, name), weights=None, weights_backbone=None, **options)
        given = {**targets, **more.get(name, {})}
        if name.startswith("keypoint"):
            given["labels"] = torch.tensor([1])
        yield Subject(name, make, (2, 3, 128, 128), True, True, given)


def _yolo() -> Iterator[Subject]:
    os.environ.update(YOLO_OFFLINE="1", YOLO_VERBOSE="false")
    ultralytics = importlib.import_module("ultralytics")
    for name in (
        "yolov3-tiny", "yolov5n", "yolov6n", "yolov8n", "yolov8n-seg", "yolov8n-pose",
        "yolov8n-cls", "yolov8n-obb", "yolov9t", "yolov10n", "yolo11n", "yolo12n", "yolo26n",
    ):  # fmt: skip
        yield Subject(name, partial(_yolo_of, ultralytics, name), (2, 3, 128, 128))


def _yolo_of(ultralytics: Any, name: str) -> nn.Module:
    model: nn.Module = ultralytics.YOLO(f"{name}.yaml").model
    return model.requires_grad_(True)


def _smp() -> Iterator[Subject]:
    smp = importlib.import_module("segmentation_models_pytorch")
    pairs = [
        *((kind, "resnet18") for kind in (
            "Unet", "UnetPlusPlus", "Linknet", "MAnet", "FPN", "PSPNet", "DeepLabV3",
            "DeepLabV3Plus", "UPerNet", "Segformer",
        )),
        *(("Unet", encoder) for encoder in (
            "resnext50_32x4d", "se_resnet50", "densenet121", "efficientnet-b0", "mobilenet_v2",
            "vgg11_bn", "inceptionv4", "xception", "dpn68", "timm-regnetx_002",
        )),
    ]  # fmt: skip
    for kind, encoder in pairs:
        make = partial(getattr(smp, kind), encoder, encoder_weights=None, classes=3)
        yield Subject(f"{kind} {encoder}", make, (2, 3, 64, 64))


def _monai() -> Iterator[Subject]:
    nets = importlib.import_module("monai.networks.nets")
    both = {"in_channels": 1, "out_channels": 2}
    unet = {**both, "channels": (16, 32, 64, 128), "strides": (2, 2, 2), "num_res_units": 2}
    flat, deep = (2, 1, 64, 64), (2, 1, 32, 32, 32)
    for name, kind, shape, options in (
        ("UNet 2-D", "UNet", flat, {**unet, "norm": "batch"}),
        ("UNet 3-D", "UNet", deep, {**unet, "norm": "batch"}),
        ("BasicUNet 2-D", "BasicUNet", flat, {**both, "norm": "batch"}),
        ("BasicUNet 3-D", "BasicUNet", deep, {**both, "norm": "batch"}),
        ("AttentionUnet", "AttentionUnet", flat,
         {**both, "channels": (16, 32, 64), "strides": (2, 2)}),
        ("DynUNet", "DynUNet", flat,
         {**both, "kernel_size": (3, 3, 3), "strides": (1, 2, 2), "upsample_kernel_size": (2, 2),
          "norm_name": "batch"}),
        ("VNet", "VNet", deep, both),
        ("SegResNet", "SegResNet", flat, {**both, "norm": "batch"}),
        ("HighResNet", "HighResNet", (2, 1, 16, 16, 16), both),
        ("DenseNet121 2-D", "DenseNet121", flat, both),
        ("DenseNet121 3-D", "DenseNet121", deep, both),
        ("SEResNet50", "SEResNet50", flat, {"in_channels": 1, "num_classes": 2}),
        ("EfficientNetBN", "EfficientNetBN", flat,
         {"in_channels": 1, "num_classes": 2, "model_name": "efficientnet-b0",
          "pretrained": False}),
        ("ResNet18 3-D", "resnet18", deep, {"n_input_channels": 1, "num_classes": 2}),
    ):  # fmt: skip
        make = partial(getattr(nets, kind), spatial_dims=len(shape) - 2, **options)
        yield Subject(name, make, shape)


SUITES = {
    "torchvision": Suite(
        "torchvision: segmentation, video, larger classifiers", "comes with rni_pl", _torchvision
    ),
    "detection": Suite("torchvision: detection", "comes with rni_pl", _detection),
    "yolo": Suite("Ultralytics", "`ultralytics` (AGPL-3.0)", _yolo),
    "smp": Suite("segmentation_models_pytorch", "`segmentation-models-pytorch` (MIT)", _smp),
    "monai": Suite("MONAI", "`monai` (Apache-2.0)", _monai),
}

"""What test_distributed runs in processes of their own; imports little, so that they start soon."""

import copy
import os
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from rni_pl.errors import DataError
from rni_pl.norm import (
    SigmoidBatchNorm2d,
    SigmoidBatchNorm3d,
    SigmoidBatchNormAct2d,
    SigmoidSyncBatchNorm,
    sync,
)


class Unpickled:
    """Calls a function in the process that unpickles it."""

    def __init__(self, function: Callable, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def complain(words: str) -> None:
    if os.environ["RANK"] == "1":  # of this rank alone; the other waits until it is ended
        raise DataError(words)
    time.sleep(60)


def norms() -> nn.Module:
    """Layers of every kind: plain, SigBN, bare, with activation, of other ranks, synchronised."""
    act = SigmoidBatchNormAct2d(4, drop=nn.Identity(), act=nn.ReLU(), momentum=None)
    return nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 3), SigmoidBatchNorm2d(4),
        nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, affine=False), nn.Conv2d(4, 4, 1), act,
        nn.Flatten(), nn.BatchNorm1d(16), nn.Unflatten(1, (4, 1, 2, 2)), SigmoidBatchNorm3d(4),
        nn.Flatten(), nn.Linear(16, 6), SigmoidSyncBatchNorm(6), nn.Linear(6, 2),
    )  # fmt: skip


def share_statistics(rank: int, folder: str) -> None:
    """Rank 0 has two images, rank 1 has five; each leaves its outputs, gradients, statistics."""
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    net, images = torch.load(f"{folder}/given.pt", weights_only=False)
    sync.synchronise(net)
    copied = copy.deepcopy(net)
    mine = images[:2] if rank == 0 else images[2:]
    output = copied(mine)
    output.square().sum().backward()
    gradients = [parameter.grad for parameter in copied.parameters()]
    for gradient in gradients:
        dist.all_reduce(gradient)
    sync.separate(copied)
    torch.save([output, gradients, copied.state_dict()], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def shallow_net(num_classes: int) -> nn.Module:
    """A network whose training does not multiply rounding errors as a deep one's does."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 5, stride=2), nn.BatchNorm2d(16), nn.SiLU(),
        nn.Conv2d(16, 32, 3, stride=2), nn.BatchNorm2d(32), nn.SiLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, num_classes),
    )  # fmt: skip

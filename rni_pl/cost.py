"""What a network costs: parameters, and multiply-accumulates by torch's own counter."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from rni_pl.modes import evaluating


def parameter_count(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in model.parameters())


def macs(model: nn.Module, image_shape: Sequence[int]) -> int:
    """Multiply-accumulates of one image of shape (channels, H, W), by torch's own counter."""
    like = next(model.parameters())
    image = torch.zeros(1, *image_shape, device=like.device, dtype=like.dtype)
    return macs_on(model, (image,), {})


def macs_on(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Multiply-accumulates of one image, with the arguments that the forward pass takes.

    The first tensor among them is a batch of images, or of what goes with one image each.
    """
    from torch.utils.flop_counter import FlopCounterMode

    like = next(model.parameters())
    args, kwargs = pytree.tree_map_only(
        Tensor,
        lambda x: x.to(like) if x.is_floating_point() else x.to(like.device),
        (args, kwargs),
    )
    counter = FlopCounterMode(display=False, custom_mapping=RECURRENT)
    with torch.no_grad(), evaluating(model), _attention_in_products(), counter:
        model(*args, **kwargs)
    tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.ndim]
    return counter.get_total_flops() // 2 // (len(tensors[0]) if tensors else 1)


def _lstm_on_cpu(inputs: torch.Size, w: torch.Size, u: torch.Size, *_: Any, **__: Any) -> int:
    """Flops of one layer and direction: the weights of inputs and of states, in every step."""
    return 2 * inputs[:-1].numel() * (w.numel() + u.numel())


def _on_gpu(inputs: torch.Size, weights: Sequence[torch.Size], *_: Any, **__: Any) -> int:
    """Flops of all layers of an RNN, whose weights come with their biases."""
    return 2 * inputs[:-1].numel() * sum(size.numel() for size in weights if len(size) == 2)


# Recurrent layers that are computed in one go, which the counter does not know.
RECURRENT = {torch.ops.aten.mkldnn_rnn_layer: _lstm_on_cpu, torch.ops.aten._cudnn_rnn: _on_gpu}


@contextmanager
def _attention_in_products() -> Iterator[None]:
    """Attention as the products that the counter knows, not in one go."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)

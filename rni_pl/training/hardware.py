"""Settings that follow from the machine: precision, cuDNN's search, memory that is kept."""

import ctypes
import platform
from typing import Any

import torch

# glibc's mallopt parameters (malloc.h) and the largest threshold that it takes.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_MMAP_THRESHOLD = 32 * 2**20


def choose_precision(precision: Any, accelerator: str) -> Any:
    """`precision` itself, or what ``auto`` stands for on this machine.

    ``bf16-mixed`` where the hardware multiplies bfloat16, ``32-true`` elsewhere. `accelerator` is
    Lightning's name (``"auto"``, ``"cpu"``, ``"gpu"``, ``"cuda"``, ...).
    """
    if precision != "auto":
        return precision
    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    return "bf16-mixed" if _multiplies_bf16(accelerator) else "32-true"


def _multiplies_bf16(accelerator: str) -> bool:
    if accelerator in ("gpu", "cuda"):
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    # oneDNN emulates bfloat16 on older processors, slower than float32: only real units count.
    real = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return accelerator == "cpu" and real is not None and bool(real())


def keep_freed_memory() -> None:
    """Let the C library hand freed activations to the next step instead of back to the system.

    Every step allocates the same tensors; fetching their pages anew each time costs several percent
    of a step on a CPU. Only glibc has the switch; elsewhere nothing is done.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def search_kernels(benchmark: bool | None, deterministic: Any) -> bool:
    """Whether cuDNN may time its kernels: where batches have one size and nothing forbids it."""
    return not deterministic if benchmark is None else benchmark

"""What a stage hands back."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from rni_pl.callbacks.history import Record


@dataclass
class Outcome:
    """The best network on the CPU, the figures of every epoch, and what `summary.json` holds."""

    model: nn.Module
    record: Record
    summary: dict[str, Any]

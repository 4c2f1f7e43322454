"""How much accuracy each layer's channels are worth: it is pruned by itself, without training."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from rni_pl.pruning.oneshot import prune

RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass
class Sensitivity:
    """Accuracy (or whatever was evaluated) against the share of a layer that was removed.

    Attributes:
        whole: of the network as it is.
        accuracy: layer -> share removed -> accuracy, in forward order.
    """

    whole: float
    accuracy: dict[str, dict[float, float]] = field(default_factory=dict)

    def ratios(self, max_drop: float) -> dict[str, float]:
        """For each layer, the largest share up to which no more than `max_drop` was lost."""
        found = {}
        for name, curve in self.accuracy.items():
            found[name] = 0.0
            for ratio in sorted(curve):
                if self.whole - curve[ratio] > max_drop + 1e-9:
                    break
                found[name] = ratio
        return found

    def __str__(self) -> str:
        """A table."""
        shares = sorted({ratio for curve in self.accuracy.values() for ratio in curve})
        width = max(map(len, ["layer", *self.accuracy]))
        lines = ["  ".join(["layer".ljust(width), *(f"{share:>6.0%}" for share in shares)])]
        for name, curve in self.accuracy.items():
            cells = (f"{curve[share]:>6.2%}" if share in curve else " " * 6 for share in shares)
            lines.append("  ".join([name.ljust(width), *cells]))
        return "\n".join([*lines, f"accuracy of the whole network: {self.whole:.2%}"])


def sensitivity(
    model: nn.Module,
    example_inputs: Any,
    evaluate: Callable[[nn.Module], float],
    ratios: Sequence[float] = RATIOS,
    watch: Callable[[Iterable[str]], Iterable[str]] = iter,
    **options: Any,
) -> Sensitivity:
    """Prune one layer after the other by several shares, and evaluate what is left.

    Args:
        model, example_inputs, options: see `rni_pl.prune`; layers that residual additions tie
            (``coupled=True``) are pruned together.
        evaluate: gives the accuracy of a network.
        ratios: shares of a layer's channels, in (0, 1).
        watch: is handed the names of the layers, to show how far it has come.

    Raises:
        PruningError: see `rni_pl.prune`.
    """
    nothing = prune(model, example_inputs, 0.0, **options)[1]
    found = Sensitivity(evaluate(model))
    done: dict[tuple[tuple[str, int], ...], float] = {}
    for name in watch(list(nothing.kept)):
        curve = found.accuracy[name] = {}
        for ratio in ratios:
            pruned, report = prune(
                model, example_inputs, 0.0, ratios={name: ratio}, verify=False, **options
            )
            key = tuple((layer, len(kept)) for layer, kept in report.kept.items())
            if key not in done:  # small layers and tied ones come to the same network
                done[key] = evaluate(pruned)
            curve[ratio] = done[key]
    return found

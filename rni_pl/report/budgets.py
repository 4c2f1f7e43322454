"""How long networks were trained and fine-tuned for."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """Epochs of sparsity training and of fine-tuning, of one network or of several.

    Attributes:
        trained: epochs of training; None: not known.
        tuned: epochs of fine-tuning; None: not known, or nothing was fine-tuned.
        is_tuned: whether there was fine-tuning, in however many epochs.
    """

    trained: int | None
    tuned: int | None = None
    is_tuned: bool = False

    def __str__(self) -> str:
        numbers = [self.trained, *([self.tuned] if self.is_tuned else [])]
        return " + ".join("unknown" if number is None else str(number) for number in numbers)

    def holds(self, other: "Budget") -> bool:
        """Whether networks of `other` are of this budget, as far as they went."""
        return other in (self, Budget(self.trained))


def distinct(budgets: Iterable[Budget]) -> list[Budget]:
    """Each budget once, from short to long; what dense networks took joins what they led to."""
    found = set(budgets)
    led_on = {budget.trained for budget in found if budget.is_tuned}
    kept = {budget for budget in found if budget.is_tuned or budget.trained not in led_on}
    return sorted(kept, key=lambda budget: (budget.trained or 0, budget.tuned or 0))

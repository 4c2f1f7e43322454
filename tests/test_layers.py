"""The core is plain PyTorch: no Lightning, no Hydra."""

from conftest import run_python

CORE = "rni_pl.norm, rni_pl.penalties, rni_pl.pruning, rni_pl.models"
HEAVY = ("pytorch_lightning", "lightning_fabric", "hydra", "omegaconf", "torchmetrics")


def test_core_imports_neither_lightning_nor_hydra() -> None:
    code = f"import sys, {CORE}; print([name for name in {HEAVY!r} if name in sys.modules])"
    assert run_python("-c", code).out.strip() == "[]"


def test_configuration_is_checked_without_torch() -> None:
    code = "import sys, rni_pl.cli; print('torch' in sys.modules)"
    assert run_python("-c", code).out.strip() == "False"

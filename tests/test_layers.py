"""Imports run one way. The core is plain PyTorch: no Lightning, no Hydra, nothing of the rest."""

import ast
from collections.abc import Iterator

from conftest import ROOT, run_python

CORE = (
    "rni_pl.norm.sync, rni_pl.norm.calibration, rni_pl.regularisers, rni_pl.pruning.carryover, "
    "rni_pl.models"
)
HEAVY = ("pytorch_lightning", "lightning_fabric", "hydra", "omegaconf", "torchmetrics")


def test_core_imports_neither_lightning_nor_hydra() -> None:
    code = f"import sys, {CORE}; print([name for name in {HEAVY!r} if name in sys.modules])"
    assert run_python("-c", code).out.strip() == "[]"


def imported_by(path: str) -> Iterator[str]:
    """What of rni_pl a module, or those of a package, import."""
    place = ROOT / "rni_pl" / path
    for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{file}: a relative import"
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            yield from (name.split(".")[1] for name in names if name.startswith("rni_pl."))


def test_imports_run_one_way() -> None:
    core = {"norm", "regularisers", "pruning", "errors", "cost", "modes"}
    for path in ("pruning", *(f"{name}.py" for name in core - {"pruning", "norm"})):
        assert set(imported_by(path)) <= core, path
    assert set(imported_by("norm")) <= {"norm", "modes"}
    assert set(imported_by("regularisers.py")) <= {"errors"}
    assert set(imported_by("models")) <= {"models", "norm"}
    assert set(imported_by("data")) <= {"data", "errors", "progress"}
    tops = {"training", "cli", "api", "helping", "export", "latency", "report"}
    assert not tops & set(imported_by("callbacks"))
    above_runs = tops | {"callbacks", "data"}
    assert not above_runs & set(imported_by("runs"))
    assert not {"cli", "api", "helping", "report", "export"} & set(imported_by("training"))


def test_configuration_is_checked_without_torch() -> None:
    code = "import sys, rni_pl.cli; print('torch' in sys.modules)"
    assert run_python("-c", code).out.strip() == "False"

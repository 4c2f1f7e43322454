import json
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def golden() -> dict:
    """Figures computed by running the reference implementation."""
    return json.loads((Path(__file__).parent / "data" / "reference.json").read_text())


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)

"""The oldest versions that CI tests with are those that pyproject.toml allows."""

import re

from conftest import ROOT


def test_ci_has_the_lower_bounds_of_pyproject() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    needed = re.search(r"^dependencies = \[(.*?)^\]", text, re.DOTALL | re.MULTILINE)
    timm = re.search(r"^timm = \[(.*)\]", text, re.MULTILINE)
    assert needed
    assert timm
    stated = re.findall(r'"(.+?)"', needed.group(1) + timm.group(1))
    bounds = [re.sub(r"^([\w-]+)>=([\w.]+)(,<[\w.]+)?$", r"\1==\2", one) for one in stated]
    assert (ROOT / ".ci/oldest.txt").read_text().split() == bounds

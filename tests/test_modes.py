"""Whether importances have two modes: of a network, and of the runs that a report shows."""

from pathlib import Path

import pytest
import torch
from made_up_runs import only_table, report, save_checkpoint, trained_run

from rni_pl import models
from rni_pl.report import comparison
from rni_pl.report.importances import read_distributions
from rni_pl.report.plots import histograms
from rni_pl.valley import valley_of


def scored(mode: float) -> torch.nn.Module:
    """VGG-16 with SigBN, one part of whose scales lies around `mode`."""
    model = models.vgg16(norm="sigbn")
    for module in model.modules():
        if hasattr(module, "running_mean"):
            size = len(module.weight)
            gamma = 2 + 0.5 * torch.randn(size)
            gamma[: size // 3] = mode + 0.5 * torch.randn(size // 3)
            module.weight.data.copy_(gamma)
    return model


def test_valley_of_a_network() -> None:
    found = valley_of(scored(-8))
    assert found is not None
    assert found.divides
    assert found.depth < 0.05
    assert 0.002 < found.score < 0.5
    assert found.share == pytest.approx(1 / 3, abs=0.01)
    single = valley_of(scored(2))
    assert single is None or not single.divides
    assert valley_of(torch.nn.Conv2d(3, 3, 1)) is None


def test_modes_of_each_dense_run(tmp_path: Path) -> None:
    for seed in (0, 1):
        run = trained_run(tmp_path / f"rni{seed}", seed=seed)
        save_checkpoint(run, "sigbn", {"bn": torch.cat([torch.randn(400) - 8, torch.randn(400)])})
    run = trained_run(tmp_path / "l1", method="l1")
    save_checkpoint(run, "bn", {"bn": 0.4 + 0.02 * torch.randn(800)})
    grid = comparison.modes(read_distributions(only_table(tmp_path), []))
    assert grid is not None
    assert [(row[0], row[1], row[-1]) for row in grid.rows] == [
        ("rni", "0", "two modes"), ("rni", "1", "two modes"), ("l1", "0", "none")
    ]  # fmt: skip
    page = report(tmp_path)
    assert page.count('<td class="">two modes</td>') == 2


def test_damaged_importances_cost_the_histogram_alone(tmp_path: Path) -> None:
    run = trained_run(tmp_path / "t")
    for damage in ("[", '{"bn": ["x"]}', '{"bn": [-1.0]}', "{}"):
        (run / "importances.json").write_text(damage)
        assert "no histogram: " in report(tmp_path)


@pytest.mark.parametrize(("smallest", "tick"), [(1e-9, "≤1e-06"), (1e-4, "0.0001")])
def test_the_first_bin_says_that_it_holds_all_smaller_ones(
    tmp_path: Path, smallest: float, tick: str
) -> None:
    run = trained_run(tmp_path / "t", method="l1")
    save_checkpoint(run, "bn", {"bn": torch.cat([torch.full((9,), smallest), torch.ones(9)])})
    (plot,) = histograms(read_distributions(only_table(tmp_path), []), {"l1": "#888888"})
    assert f">{tick}<" in plot.svg
    assert ("≤" in plot.svg) == (tick[0] == "≤")

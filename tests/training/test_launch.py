"""How the processes of a run are started, and which ways of starting them are refused."""

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from torch.distributed.launcher.api import LaunchConfig

from rni_pl.config import compose_config
from rni_pl.training import launch


def test_processes_may_finish_their_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a signal: torch would kill them 30 seconds later."""
    given = []

    class Launcher:
        def __init__(self, settings: LaunchConfig, *_: object) -> None:
            given.append(settings)

        def __call__(self, *_: object) -> dict[int, bytes]:
            return {0: pickle.dumps("done")}

    monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", Launcher)
    config = compose_config("train", ["trainer=ddp_cpu"])
    assert launch.launch("train", config, tmp_path, 2, {}) == "done"
    if hasattr(given[0], "shutdown_timeout"):
        assert given[0].shutdown_timeout >= 3600


@pytest.mark.parametrize(
    "strategy",
    [
        "ddp_spawn",
        "ddp_fork_find_unused_parameters_true",
        "ddp_notebook",
        "{_target_: pytorch_lightning.strategies.DDPStrategy, start_method: spawn}",
    ],
)
def test_strategies_that_would_start_processes_are_refused(
    command: Callable, strategy: str
) -> None:
    for name, given in (("train", "arch=resnet20"), ("prune", "checkpoint=dense")):
        refused = command(name, given, "trainer=ddp_cpu", f"trainer.strategy={strategy}")
        assert refused.status == 2
        assert "trainer.strategy=" in refused.err
        assert "trainer.strategy=ddp trainer.devices=2" in refused.err

"""The two stages by name, in one process or several."""

from collections.abc import Callable
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from rni_pl import launch, runs
from rni_pl.finetuning import prune_and_finetune
from rni_pl.outcome import Outcome
from rni_pl.training import train

STAGES: dict[str, Callable[[DictConfig, Path], Outcome]] = {
    "train": train,
    "prune": prune_and_finetune,
}


def run(stage: str, config: DictConfig, run_dir: Path) -> Outcome:
    """Run a stage of `STAGES` as configured; a run that is resumed goes on in its own directory."""
    if config.resume is not None:
        if HydraConfig.initialized():
            config = runs.resumed_config(config, list(HydraConfig.get().overrides.task))
        run_dir = Path(config.resume)
    count = launch.processes(config.trainer)
    if count > 1:
        return launch.launch(stage, config, run_dir, count)
    return STAGES[stage](config, run_dir)

"""The two stages by name, in one process or several."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from rni_pl.stages import launch
from rni_pl.stages.finetuning import prune_and_finetune
from rni_pl.stages.outcome import Outcome
from rni_pl.stages.resume import resumed_config
from rni_pl.stages.training import train

STAGES: dict[str, Callable[..., Outcome]] = {
    "train": train,
    "prune": prune_and_finetune,
}


def run(stage: str, config: DictConfig, run_dir: Path, **options: Any) -> Outcome:
    """Run a stage of `STAGES` as configured; a run that is resumed goes on in its own directory.

    `options` are further arguments of the stage.
    """
    if config.resume is not None:
        config = resumed_config(stage, config)
        run_dir = Path(config.resume)
    count = launch.processes(config.trainer)
    if count > 1:
        return launch.launch(stage, config, run_dir, count, options)
    if count == 1 and str(config.trainer.strategy).startswith("ddp"):
        # DDP of one process would leave its environment variables to the next job of a sweep.
        OmegaConf.update(config, "trainer.strategy", "auto")
    return STAGES[stage](config, run_dir, **options)

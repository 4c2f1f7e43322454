"""Several processes on one machine, through torch.distributed's own launcher.

Lightning's launcher would start the command line again in every process, and Hydra with it; here
the processes get the composed configuration, so that sweeps start no sweeps of their own.
"""

import logging
import os
import tempfile
import uuid
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from rni_pl.config import plain
from rni_pl.errors import ConfigError, Interrupted, RniError
from rni_pl.interruption import handled_by, stop


def processes(trainer: DictConfig) -> int:
    """Number of processes to start here: 1 where none are needed or others have started them."""
    if "LOCAL_RANK" in os.environ or "SLURM_PROCID" in os.environ:
        return 1
    if not str(trainer.strategy).startswith(("ddp", "fsdp")):
        return 1
    devices = trainer.devices
    if devices in (-1, "-1", "auto"):
        return max(1, torch.cuda.device_count())
    try:
        return len(devices) if OmegaConf.is_list(devices) else int(devices)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"trainer.devices={devices!r} is not allowed; allowed: a number, a list, auto"
        ) from error


def launch(stage: str, config: DictConfig, run_dir: Path, count: int) -> Any:
    """Run a stage in `count` processes; the result of the first, or the mistake it found."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    with tempfile.TemporaryDirectory() as logs:
        settings = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=0,
            start_method="spawn",
            logs_specs=DefaultLogsSpecs(log_dir=logs),
        )
        for name in ("agent.server.api", "multiprocessing.api"):  # they tell of every signal
            logging.getLogger(f"torch.distributed.elastic.{name}").setLevel(logging.ERROR)
        launched = elastic_launch(settings, _worker)
        with handled_by(stop):  # torch puts handlers of its own there, and leaves them
            try:
                results = launched(stage, plain(config), str(run_dir), count)
            except SignalException as error:
                raise Interrupted(error.sigval) from error
    result = results[0]
    if isinstance(result, RniError):
        raise result
    return result


def _worker(stage: str, config: dict[str, Any], run_dir: str, count: int) -> Any:
    from rni_pl.stages import STAGES

    if config["trainer"]["accelerator"] == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // count))
    try:
        return STAGES[stage](OmegaConf.create(config), Path(run_dir))
    except RniError as error:
        return error

"""A stage by name, in one process or in several, through torch.distributed's own launcher.

Lightning's launcher would start the command line again in every process, and Hydra with it; here
the processes get the composed configuration, so that sweeps start no sweeps of their own.
"""

import logging
import os
import pickle
import tempfile
import traceback
import uuid
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from rni_pl.config import plain
from rni_pl.errors import ConfigError, Interrupted, LaunchError, RniError
from rni_pl.runs import directory
from rni_pl.runs.summary import Outcome
from rni_pl.training.finetuning import prune_and_finetune
from rni_pl.training.signals import handled_by, stop
from rni_pl.training.sparsity import train

STAGES: dict[str, Callable[..., Outcome]] = {"train": train, "prune": prune_and_finetune}

# Seconds in which processes may come to the end of their epoch after a signal, before they are
# killed: a second signal is what cuts a long validation short.
PATIENCE = 24 * 3600


def run(stage: str, config: DictConfig, run_dir: Path, **options: Any) -> Outcome:
    """Run a stage of `STAGES` as configured, in a directory that is locked meanwhile.

    `options` are further arguments of the stage.
    """
    count = processes(config.trainer)
    if count > 1:
        return launch(stage, config, run_dir, count, options)
    if count == 1 and str(config.trainer.strategy).startswith("ddp"):
        # DDP of one process would leave its environment variables to the next job of a sweep.
        OmegaConf.update(config, "trainer.strategy", "auto")
    with directory.locked(run_dir):
        return STAGES[stage](config, run_dir, **options)


def processes(trainer: DictConfig) -> int:
    """Number of processes to start here; 0 where others start them, or have started this one.

    Raises:
        ConfigError: several machines are asked for, and nothing has started this process on each.
    """
    from pytorch_lightning.plugins.environments import (
        LSFEnvironment,
        MPIEnvironment,
        SLURMEnvironment,
        TorchElasticEnvironment,
    )

    clusters = (TorchElasticEnvironment, SLURMEnvironment, LSFEnvironment, MPIEnvironment)
    if "LOCAL_RANK" in os.environ or any(cluster.detect() for cluster in clusters):
        return 0
    if trainer.num_nodes > 1:
        raise ConfigError(
            f"trainer.num_nodes={trainer.num_nodes} needs torchrun or srun, which start the "
            "command on every machine"
        )
    if trainer.accelerator not in ("auto", "cpu", "gpu", "cuda"):
        return 0
    devices = trainer.devices
    if devices in (-1, "-1", "auto"):
        return 1 if _on_cpu(trainer.accelerator) else torch.cuda.device_count()
    try:
        return len(devices) if OmegaConf.is_list(devices) else int(devices)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"trainer.devices={devices!r} is not allowed; allowed: a number, a list, auto"
        ) from error


def launch(
    stage: str, config: DictConfig, run_dir: Path, count: int, options: dict[str, Any]
) -> Any:
    """Run a stage in `count` processes; what the first returns.

    Raises:
        RniError: the mistake that one of them found.
        LaunchError: one of them was killed, or failed otherwise.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # As bytes: tensors would be passed in memory that all processes then share and train.
    job = pickle.dumps((stage, plain(config), run_dir, options))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # we say it ourselves
    with tempfile.TemporaryDirectory(prefix="rni_pl_") as folder:
        settings = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=0,
            start_method="spawn",
            logs_specs=DefaultLogsSpecs(log_dir=folder),
            **_patient(LaunchConfig),
        )
        try:
            with handled_by(stop):  # torch puts handlers of its own there, and leaves them
                results = elastic_launch(settings, _worker)(job, folder, count)
        except ChildFailedError as error:
            raise _mistake(Path(folder), error) from error
        except SignalException as error:  # which the processes got too, and have ended
            raise Interrupted(error.sigval) from error
    return pickle.loads(results[0])


def _patient(settings: type) -> dict[str, Any]:
    """The setting that has torch wait for processes that end; earlier versions have none."""
    name = "shutdown_timeout"
    known = any(field.name == name for field in fields(settings))
    return {name: PATIENCE} if known else {}


def _worker(job: bytes, folder: str, count: int) -> bytes | None:
    """Run a stage as one of `count` processes; the first returns its outcome."""
    rank = os.environ["RANK"]
    try:
        stage, config, run_dir, options = pickle.loads(job)
        if _on_cpu(config["trainer"]["accelerator"]):
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // count))
        # Lightning may have been imported before this process knew its rank.
        with directory.locked(run_dir) if rank == "0" else nullcontext():
            outcome = STAGES[stage](OmegaConf.create(config), run_dir, **options)
    except RniError as error:
        (Path(folder) / f"mistake_{rank}").write_bytes(pickle.dumps(error))
        raise SystemExit(1) from error  # the launcher then ends the others, which may wait for us
    except Exception:
        traceback.print_exc()
        raise SystemExit(1) from None
    return pickle.dumps(outcome) if rank == "0" else None


def _mistake(folder: Path, error: Any) -> RniError:
    """What to tell of processes that failed: the mistake that one found, or how the first ended."""
    for file in sorted(folder.glob("mistake_*")):
        return pickle.loads(file.read_bytes())
    rank, failure = error.get_first_failure()
    ended = f"signal {-failure.exitcode}" if failure.exitcode < 0 else f"exit {failure.exitcode}"
    return LaunchError(f"process {rank} of the run ended with {ended}, and the others with it")


def _on_cpu(accelerator: Any) -> bool:
    return accelerator == "cpu" or not torch.cuda.is_available()

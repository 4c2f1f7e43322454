"""Several processes give what one gives, from the commands, from Python and in sweeps."""

import copy
import json
import os
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SHORT, Finished, run_command, run_python
from ranks import Unpickled, complain, norms, share_statistics
from watched import Watch

import rni_pl
from rni_pl.config import compose_config
from rni_pl.data.batches import SharedBatches
from rni_pl.errors import ConfigError, DataError, LaunchError
from rni_pl.norm import SigmoidBatchNorm2d, sync
from rni_pl.runs.checkpoint import read_plain
from rni_pl.training import launch

# A batch that two processes cannot share equally; no chance, no half precision. The network is
# shallow and smooth: a deep one multiplies rounding errors some ten times a step, in float64 too,
# and then chaos is measured instead of arithmetic.
FOUND = os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests/helpers")))
NET = ("arch=custom", "arch._target_=ranks.shallow_net")
STEPS = (
    "data=digits", "data.batch_size=31", "data.padding=0", "data.flip=false",
    "trainer=ddp_cpu", "trainer.sync_batchnorm=true", "trainer.precision=32-true",
    "trainer.max_epochs=1", "trainer.enable_model_summary=false", "trainer.limit_train_batches=20",
)  # fmt: skip
TIMES = {"seconds", "images_per_second"}


def summary(run_dir: Path) -> dict:
    return json.loads((run_dir / "summary.json").read_text())


@pytest.mark.slow
def test_two_processes_do_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Started by torchrun, as on several machines: losses, masks, networks and summaries."""
    train = (*NET, *STEPS)
    prune = (*STEPS, "prune.recalibrate=1", "prune.absorb=true", "allow=[ranks.shallow_net]")
    done = run_python(
        "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
        str(ROOT / "tests" / "helpers" / "watched.py"), str(tmp_path),
        "train", *train, f"hydra.run.dir={tmp_path}/two", "--",
        "prune", f"checkpoint={tmp_path}/two", *prune, f"hydra.run.dir={tmp_path}/two_half",
        OMP_NUM_THREADS="1", PYTHONPATH=FOUND,
    )  # fmt: skip
    assert done.status == 0, done.err
    notes = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert notes[0] == notes[1]
    assert notes[0]["world_size"] == 2

    watch = Watch()
    watch.install(monkeypatch.setattr)
    alone = "trainer.devices=1"
    assert run_command("train", *train, alone, f"hydra.run.dir={tmp_path}/one") == 0
    given = f"checkpoint={tmp_path}/one"
    assert run_command("prune", given, *prune, alone, f"hydra.run.dir={tmp_path}/one_half") == 0
    found = watch.notes
    assert found["world_size"] == 1
    assert len(found["losses"]) == 40
    differences = [abs(a - b) for a, b in zip(found["losses"], notes[0]["losses"], strict=True)]
    print("largest difference of losses:", max(differences[:20]), max(differences[20:]))
    assert max(differences[:20]) < 1e-5
    assert max(differences) < 1e-4
    assert found["losses"][19] < 0.9 * found["losses"][0]
    assert found["kept"] == notes[0]["kept"]
    for run in ("one", "one_half"):
        one, two = summary(tmp_path / run), summary(tmp_path / run.replace("one", "two"))
        assert {key for key in one if one[key] != two[key]} <= TIMES
    assert summary(tmp_path / "one")["test_acc"] > 0.2
    net = rni_pl.load_model(tmp_path / "two_half", allow=["ranks.shallow_net"])
    assert type(net[1]) is SigmoidBatchNorm2d


@pytest.mark.slow
def test_prune_finetune_in_two_processes(tmp_path: Path) -> None:
    """From Python; the network that is given stays as it is."""
    model = rni_pl.models.resnet20(norm="sigbn")
    before = copy.deepcopy(model.state_dict())
    overrides = [*SHORT[1:3], "trainer=ddp_cpu"]
    small, logs = rni_pl.prune_finetune(
        model, "digits", "rni", 0.3, epochs=1, batch_size=16, run_dir=tmp_path, overrides=overrides
    )
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert len(logs["test_acc"]) == 1
    assert logs["summary"] == summary(tmp_path)
    assert logs["summary"]["channels_pruned"] < logs["summary"]["channels_dense"]
    saved = read_plain(tmp_path / "checkpoints" / "best.ckpt")["state_dict"]
    weights = small.state_dict()
    assert all(torch.equal(saved[f"model.{key}"], value) for key, value in weights.items())


@pytest.mark.slow
def test_sweep_of_three_jobs_with_two_processes_each(tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    done = run_python(
        str(ROOT / "train.py"), "-m", "arch=resnet20", "data=digits", *SHORT, "trainer=ddp_cpu",
        "method=rni,l1,ucs", "hydra.sweep.dir=sweep", cwd=tmp_path, TMPDIR=str(temporary),
    )  # fmt: skip
    assert done.status == 0, done.err
    assert done.err.count("MEMBER: 2/2") == 3
    methods = ["rni", "l1", "ucs"]
    jobs = [f"method-{name}" for name in methods]
    assert [summary(tmp_path / "sweep" / job)["method"] for job in jobs] == methods
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sweep", "temporary"]
    assert {path.name for path in (tmp_path / "sweep").iterdir()} == {*jobs, "multirun.yaml"}
    torchs_own = "torchinductor_"  # torch makes it for each user when it is imported
    assert not [p.name for p in temporary.iterdir() if not p.name.startswith(torchs_own)]


def torchrun(rank: int, port: int) -> tuple[list[str], dict[str, str]]:
    agent = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    return [*agent, "--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{port}"], {}


def srun(rank: int, port: int) -> tuple[list[str], dict[str, str]]:
    """What SLURM says to each of two tasks on a node each."""
    told = {"JOB_ID": "7", "JOB_NAME": "train", "NTASKS": "2", "NTASKS_PER_NODE": "1",
            "NNODES": "2", "NODELIST": "localhost", "LOCALID": "0", "PROCID": str(rank),
            "NODEID": str(rank)}  # fmt: skip
    return [], {"MASTER_PORT": str(port), **{f"SLURM_{key}": value for key, value in told.items()}}


@pytest.mark.slow
@pytest.mark.parametrize("starter", [torchrun, srun])
def test_two_machines(tmp_path: Path, starter: Callable) -> None:
    """Two nodes of a process each, on this machine, started by others; against one process."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    script, settings = str(ROOT / "train.py"), (*NET, *STEPS, "trainer.limit_train_batches=3")
    nodes = ("trainer.devices=1", "trainer.num_nodes=2", "hydra.run.dir=two")

    def start(rank: int) -> Finished:
        arguments, environment = starter(rank, port)
        environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": FOUND, **environment}
        return run_python(*arguments, script, *settings, *nodes, cwd=tmp_path, **environment)

    with ThreadPoolExecutor() as pool:
        done = list(pool.map(start, range(2)))
    assert [finished.status for finished in done] == [0, 0], done
    assert "MEMBER: 2/2" in "".join(finished.out + finished.err for finished in done)
    assert [path.name for path in tmp_path.iterdir()] == ["two"]
    alone = ("trainer.devices=1", f"hydra.run.dir={tmp_path}/one")
    assert run_command("train", *settings, *alone) == 0
    one, two = summary(tmp_path / "one"), summary(tmp_path / "two")
    assert {key for key in one if one[key] != two[key]} <= TIMES
    weights = [
        read_plain(tmp_path / run / "checkpoints" / "last.ckpt")["state_dict"]
        for run in ("one", "two")
    ]
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.slow
def test_what_one_process_finds_wrong_ends_the_others(tmp_path: Path) -> None:
    config = compose_config("train", ["trainer=ddp_cpu"])
    with pytest.raises(DataError, match=r"cat\.png"):
        launch.launch("train", config, tmp_path, 2, {"x": Unpickled(complain, "cat.png is torn")})
    with pytest.raises(LaunchError, match="process 0 of the run ended with signal 6"):
        launch.launch("train", config, tmp_path, 1, {"x": Unpickled(os.abort)})


def test_number_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    def count(*overrides: str) -> int:
        return launch.processes(compose_config("train", overrides).trainer)

    assert count() == 1
    assert count("trainer=ddp_cpu") == count("trainer.devices=2") == 2
    assert count("trainer=ddp_cpu", "trainer.devices=auto") == 1
    assert count("trainer=ddp", "trainer.devices=[1,3,4]") == 3
    with pytest.raises(ConfigError, match="torchrun or srun"):
        count("trainer=ddp", "trainer.devices=4", "trainer.num_nodes=2")
    with monkeypatch.context() as patch:
        patch.setenv("SLURM_NTASKS", "8")
        patch.setenv("SLURM_JOB_NAME", "train")
        assert count("trainer=ddp", "trainer.devices=4", "trainer.num_nodes=2") == 0
        patch.setenv("SLURM_JOB_NAME", "bash")  # a shell on a node: nothing has started the others
        assert count("trainer=ddp", "trainer.devices=4") == 4
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert count("trainer=ddp", "trainer.devices=4", "trainer.num_nodes=2") == 0


def test_batch_too_small_for_the_processes(command: Callable) -> None:
    settings = ("arch=resnet20", "data=digits", "data.batch_size=3")
    plenty = ("trainer=ddp_cpu", "trainer.devices=1", "hydra.run.dir=run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pytorch_lightning.Trainer.world_size", 2)
        finished = command("train", *settings, *plenty)
    assert finished.status == 2
    assert "data.batch_size=3 is not allowed with 2 processes" in finished.err
    assert not Path("run").exists()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("count", [7, 8, 9, 11, 16])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_processes_share_every_batch(training: bool, count: int, world_size: int) -> None:
    whole = list(SharedBatches(count, 4 * world_size, 1, training))
    shares = [
        list(SharedBatches(count, 4 * world_size, 1, training, rank, world_size))
        for rank in range(world_size)
    ]
    joined = [list(chain(*parts)) for parts in zip(*shares, strict=True)]
    seen = sorted(index for _, index in chain(*joined))
    if training:
        assert joined == whole[: len(joined)]
        assert all(len(part) >= 2 for share in shares for part in share)
        assert count - len(seen) < 2 * world_size
    else:
        assert seen == list(range(count))  # each once
        assert all(part for share in shares for part in share)
    with pytest.raises(DataError, match="2 images are too few for 3 processes"):
        SharedBatches(2, 4, 1, training, 0, 3)


def test_statistics_of_two_processes_are_those_of_one(tmp_path: Path) -> None:
    torch.manual_seed(1)
    net, images = norms().double(), 3 * torch.randn(7, 3, 6, 6).double() + 20
    torch.save([net, images], tmp_path / "given.pt")
    torch.multiprocessing.spawn(share_statistics, (str(tmp_path),), nprocs=2)
    output = net(images)
    output.square().sum().backward()
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    torch.testing.assert_close(torch.cat([found[0][0], found[1][0]]), output)
    for _, gradients, statistics in found:
        scale = max(parameter.grad.abs().max() for parameter in net.parameters())
        for gradient, parameter in zip(gradients, net.parameters(), strict=True):
            torch.testing.assert_close(gradient, parameter.grad, atol=1e-12 * scale, rtol=1e-9)
        torch.testing.assert_close(statistics, net.state_dict())


def test_one_process_shares_nothing() -> None:
    net, images = norms(), torch.randn(4, 3, 6, 6)
    expected = copy.deepcopy(net)(images)
    sync.synchronise(net)
    assert torch.equal(net(images), expected)


LOUDER = """
from torch import nn

class Louder(nn.BatchNorm2d):
    def forward(self, input):
        return 2 * super().forward(input)

def net(num_classes):
    pool = nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(nn.Conv2d(3, 8, 3), Louder(8), pool, nn.Flatten(), nn.Linear(8, 10))
"""


def test_layers_that_do_more_are_not_synchronised(
    command: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "louder.py").write_text(LOUDER)
    monkeypatch.syspath_prepend(tmp_path)
    own = ("arch=custom", "arch._target_=louder.net", "data=digits", "method=l1")
    finished = command("train", *own, "trainer.sync_batchnorm=true", "hydra.run.dir=run")
    assert finished.status == 2
    assert "sync_batchnorm=true is not allowed: Louder does more than BatchNorm" in finished.err
    assert not Path("run").exists()

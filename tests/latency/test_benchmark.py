"""Speed is measured in turns, by the median, and stands beside the reduction of MACs."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoint_files import as_trained, save_checkpoint, spec_of
from conftest import SHORT
from refusals import refused
from torch import nn

from rni_pl import models
from rni_pl.config import compose_config, plain
from rni_pl.cost import macs
from rni_pl.errors import ConfigError
from rni_pl.latency import comparing, engines, timing
from rni_pl.latency.networks import families
from rni_pl.latency.timing import latency, medians, seconds_a_batch
from rni_pl.pruning import prune
from rni_pl.runs.spec import ModelSpec, build

pytest.importorskip("onnxruntime")

QUICK = ("batch=[1,2]", "repeats=2")


class Clock:
    """A clock that calls move on."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def call(self, name: str, durations: list[float]) -> Callable[[], None]:
        """A call that takes each of the durations in turn, then the last one."""
        left = list(durations)

        def run() -> None:
            self.calls.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock.now)
    return clock


def test_medians_of_turns_after_a_warm_up(clock: Clock) -> None:
    compiling = [9.0, 1.0, 1.0, 1.0]
    slow = clock.call("slow", [*compiling, 2.0, 50.0, 3.0])
    fast = clock.call("fast", [*compiling, 1.0, 0.5, 0.5])
    assert medians([slow, fast], repeats=3) == [3.0, 0.5]
    warm_up = 4
    assert clock.calls[: 2 * warm_up] == ["slow"] * warm_up + ["fast"] * warm_up
    assert clock.calls[2 * warm_up :] == ["slow", "fast", "fast", "slow", "slow", "fast"]


def test_short_calls_are_timed_together(clock: Clock) -> None:
    assert medians([clock.call("short", [0.001])], repeats=2) == [pytest.approx(0.001)]
    assert len(clock.calls) == 4 + 2 * 20


def test_threads_are_those_asked_for() -> None:
    seen = []

    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(torch.get_num_threads())
            return x

    before = torch.get_num_threads()
    seconds_a_batch([Net()], [3, 8, 8], batch=2, threads=before + 1, repeats=1)
    assert set(seen) == {before + 1}
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    "name", ["eager", "onnx", pytest.param("compiled", marks=pytest.mark.slow)]
)
def test_engines_run_the_network(name: str) -> None:
    model = as_trained(models.resnet20())
    images = torch.randn(3, 3, 32, 32)
    result = engines.engine_of(name, align=4)(model, images)()
    logits = torch.from_numpy(result[0]) if name == "onnx" else result
    assert torch.allclose(logits, model(images), atol=1e-4)


@pytest.mark.slow
def test_command_on_a_pruned_run(command: Callable, pruned: Path) -> None:
    finished = command(
        "benchmark", f"checkpoint={pruned}", "engines=[eager,onnx]", *QUICK, "json=speed.json"
    )
    assert finished.status == 0, finished.err
    rows = json.loads(Path("speed.json").read_text())
    assert [(row["engine"], row["batch"]) for row in rows[::2]] == [
        ("eager", 1), ("eager", 2), ("onnx", 1), ("onnx", 2),
    ]  # fmt: skip
    summary = json.loads((pruned / "summary.json").read_text())
    for dense, small in zip(rows[::2], rows[1::2], strict=True):
        assert (dense["network"], small["network"]) == ("dense", str(pruned))
        assert dense["speedup"] == dense["mac_reduction"] == 1
        assert small["mac_reduction"] == summary["macs_dense"] / summary["macs_pruned"]
        assert small["speedup"] == pytest.approx(dense["milliseconds"] / small["milliseconds"])
        assert small["efficiency"] == pytest.approx(small["speedup"] / small["mac_reduction"])
        assert small["images_per_second"] == pytest.approx(
            1000 * small["batch"] / small["milliseconds"]
        )
        assert f"{small['speedup']:.2f}x" in finished.out
        assert f"{small['mac_reduction']:.2f}x" in finished.out


def test_command_prunes_a_dense_run_to_see(command: Callable, trained: Path) -> None:
    finished = command(
        "benchmark", f"checkpoint={trained}", "engines=eager", "batch=1", "repeats=1",
        "prune.ratio=[0.3,0.6]", "prune.round_to=[1,8]", "json=speed.json",
    )  # fmt: skip
    assert finished.status == 0, finished.err
    dense, *rows = json.loads(Path("speed.json").read_text())
    names = [f"ratio {ratio}, round_to {k}" for ratio in (0.3, 0.6) for k in (1, 8)]
    assert [row["network"] for row in rows] == names
    assert dense["mac_reduction"] == 1 < rows[0]["mac_reduction"] < rows[2]["mac_reduction"]


def test_dense_and_pruned_runs_are_compared_in_one_table(
    command: Callable, trained: Path, pruned: Path
) -> None:
    runs = f"checkpoint=[{pruned},{trained}]"
    finished = command("benchmark", runs, "engines=eager", *QUICK, "json=speed.json")
    assert finished.status == 0, finished.err
    rows = json.loads(Path("speed.json").read_text())
    assert [row["network"] for row in rows] == ["dense", str(pruned)] * 2


def test_an_engine_that_cannot_run_is_left_out(
    command: Callable, pruned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_compiler(*_: object) -> None:
        raise RuntimeError("no C++ compiler\nmore of it")

    monkeypatch.setitem(engines.ENGINES, "compiled", no_compiler)
    arguments = (f"checkpoint={pruned}", "batch=1", "repeats=1")
    with pytest.warns(UserWarning, match=r"^compiled, batch 1: RuntimeError: no C\+\+ compiler$"):
        finished = command("benchmark", *arguments, "engines=[compiled,eager]")
    assert finished.status == 0
    assert "eager" in finished.out
    with pytest.warns(UserWarning, match=r"^compiled, batch 1"):
        finished = command("benchmark", *arguments, "engines=compiled", "json=speed.json")
    assert finished.status == 2
    assert "none of them can run here" in finished.err
    assert not Path("speed.json").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["checkpoint is missing"]),
        (["checkpoint=nowhere"], ["checkpoint=nowhere does not exist"]),
        (["checkpoint=x", "engines=tensorrt"], ["engines='tensorrt'", "eager, compiled or onnx"]),
        (["checkpoint=x", "engines=[]"], ["engines=[]"]),
        (["checkpoint=x", "batch=0"], ["batch=0", "an integer from 1"]),
        (["checkpoint=x", "threads=0"], ["threads=0"]),
        (["checkpoint=x", "prune.ratio=[0.5,1]"], ["prune.ratio=[0.5, 1]", "0 <= value < 1"]),
        (["checkpoint=x", "json=speed.txt"], ["json='speed.txt'", ".json"]),
        (["checkpoint=x", "json=no/speed.json"], ["json=no/speed.json", "no such folder"]),
        (["checkpoint=x", "ratio=0.5"], ["ratio"]),
        (
            ["checkpoint=x", "+prune.measure_latency=true"],
            ["prune.measure_latency", "not of the benchmark"],
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_mistakes_are_one_line(command: Callable, arguments: list[str], words: list[str]) -> None:
    refused(command("benchmark", *arguments), *words)


def test_a_pruned_run_is_not_pruned_to_see(command: Callable, pruned: Path) -> None:
    finished = command("benchmark", f"checkpoint={pruned}", "prune.ratio=0.5")
    assert finished.status == 2
    assert "prune.ratio is for dense checkpoints" in finished.err


def test_prune_can_include_the_latency(command: Callable, trained: Path, tmp_path: Path) -> None:
    arguments = (
        f"checkpoint={trained}",
        *SHORT,
        "hydra.run.dir=small",
        "prune.measure_latency=true",
    )
    finished = command("prune", *arguments)
    assert finished.status == 0, finished.err
    found = json.loads((tmp_path / "small" / "summary.json").read_text())["latency"]
    assert list(found) == ["engine", "batch", "threads", "dense_ms", "pruned_ms", "speedup"]
    assert (found["engine"], found["batch"]) == ("eager", 64)
    assert found["speedup"] == pytest.approx(found["dense_ms"] / found["pruned_ms"])
    assert f"{found['pruned_ms']:.3g} ms" in finished.out
    assert f"speed-up {found['speedup']:.2f}x" in finished.out


def test_latency_is_that_of_one_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a sweep the dense network is tested once: in later jobs it is as it was loaded."""
    layouts: list[list[bool]] = []

    def note(models: list[nn.Module], *_: object, **__: object) -> list[float]:
        layouts.append([model[0].weight.is_contiguous() for model in models])
        return [1.0, 2.0]

    monkeypatch.setattr("rni_pl.latency.timing.seconds_a_batch", note)
    loaded, tested = (nn.Sequential(nn.Conv2d(3, 8, 3)) for _ in range(2))
    tested.to(memory_format=torch.channels_last)
    for dense in (loaded, tested):
        assert latency(dense, tested, [3, 32, 32])["speedup"] == 0.5
    assert layouts == [[True, True], [True, True]]
    assert not tested[0].weight.is_contiguous()


def test_latency_is_not_measured_unless_asked_for(pruned: Path) -> None:
    assert "latency" not in json.loads((pruned / "summary.json").read_text())


@pytest.mark.slow
def test_vgg16_at_half_its_channels_is_faster_for_real(tmp_path: Path) -> None:
    """At least 0.7 of the MAC reduction on ONNX Runtime, two threads, batch 64."""
    spec = spec_of("rni_pl.models.vgg16", "sigbn")
    model = as_trained(build(spec))
    pruned, _ = prune(model, torch.zeros(1, 3, 32, 32), 0.5)
    wanted = 0.7 * macs(model, [3, 32, 32]) / macs(pruned, [3, 32, 32])
    setup = {"batch": 64, "engine": engines.engine_of("onnx", align=4), "threads": 2}
    for _ in range(6):  # a busy machine is forgiven
        dense_s, pruned_s = seconds_a_batch([model, pruned], [3, 32, 32], **setup)
        if dense_s / pruned_s >= wanted:
            return
    pytest.fail(f"{dense_s / pruned_s:.2f} times faster, not {wanted:.2f}")


def test_dense_checkpoints_of_one_network_are_told_apart(trained: Path, tmp_path: Path) -> None:
    other = shutil.copytree(trained, tmp_path / "other")
    config = compose_config("benchmark", [f"checkpoint=[{trained},{other}]", "prune.ratio=[0.5]"])
    (family,) = families(config)
    assert list(family.pruned) == [f"{path}, ratio 0.5, round_to 1" for path in (trained, other)]


def test_one_dense_network_is_not_given_twice(trained: Path, tmp_path: Path) -> None:
    other = shutil.copytree(trained, tmp_path / "other")
    config = compose_config("benchmark", [f"checkpoint=[{trained},{other}]"])
    with pytest.raises(ConfigError, match=r"other is the same dense network as .*trained"):
        families(config)


def test_tables_and_rows_say_what_tells_families_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparing, "seconds_a_batch", lambda *_: [0.1])
    target, shape = "rni_pl.models.resnet20", [3, 32, 32]
    specs = [
        ModelSpec({"_target_": target}, 10, "bn", image_shape=shape),
        ModelSpec({"_target_": target}, 10, "sigbn", image_shape=shape),
        ModelSpec({"_target_": target}, 7, "bn", image_shape=shape),
        ModelSpec({"_target_": target}, 10, "bn", image_shape=[3, 64, 48]),
        ModelSpec({"_target_": target, "num_classes": 10}, 10, "bn", image_shape=shape),
    ]
    files = [
        save_checkpoint(build(spec), spec, tmp_path / f"{i}.ckpt") for i, spec in enumerate(specs)
    ]
    given = f"checkpoint=[{','.join(map(str, files))}]"
    config = compose_config("benchmark", [given, "engines=eager", "batch=1", "threads=2"])
    rows = [next(comparing.measure(family, plain(config), print)) for family in families(config)]
    assert [str(comparing.table([row]).title) for row in rows] == [
        "resnet20 (bn, 10 classes, 32 x 32), 2 threads",
        "resnet20 (sigbn, 10 classes, 32 x 32), 2 threads",
        "resnet20 (bn, 7 classes, 32 x 32), 2 threads",
        "resnet20 (bn, 10 classes, 64 x 48), 2 threads",
        "resnet20 (num_classes=10, bn, 10 classes, 32 x 32), 2 threads",
    ]
    told = [(r.arch, str(r.arguments), r.norm, r.classes, str(r.image_size)) for r in rows]
    assert len(set(told)) == len(specs)

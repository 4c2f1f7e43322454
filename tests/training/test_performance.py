"""What makes training fast, by design; the last test alone measures time."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from conftest import SHORT, run_python
from torch import Tensor

from rni_pl import config, models
from rni_pl.callbacks import History, SparsityRegulariser
from rni_pl.data import Augment, BatchLoader, Split
from rni_pl.regularisers import RNI
from rni_pl.training import fitting, hardware
from rni_pl.training.network import new_classifier
from rni_pl.training.recipe import Recipe
from rni_pl.training.sharing import between_jobs, shared
from rni_pl.training.trainer import make_trainer

DIGITS = ("arch=resnet20", "data=digits", *SHORT)


def test_precision_follows_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    assert hardware.choose_precision("auto", "cpu") == "bf16-mixed"
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False, raising=False)
    assert hardware.choose_precision("auto", "cpu") == "32-true"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert hardware.choose_precision("auto", "auto") == "bf16-mixed"
    assert hardware.choose_precision("auto", "gpu") == "bf16-mixed"
    assert hardware.choose_precision("auto", "mps") == "32-true"
    assert hardware.choose_precision("16-mixed", "gpu") == "16-mixed"


@pytest.mark.parametrize(
    ("benchmark", "deterministic", "expected"),
    [(None, None, True), (None, True, False), (False, None, False), (True, None, True)],
)
def test_cudnn_searches_unless_deterministic(
    benchmark: bool | None, deterministic: bool | None, expected: bool, tmp_path: Path
) -> None:
    before = torch.backends.cudnn.benchmark
    overrides = [f"trainer.benchmark={json.dumps(benchmark)}", "data=digits"]
    overrides.append(f"trainer.deterministic={json.dumps(deterministic)}")
    try:
        make_trainer(config.compose_config("train", overrides), tmp_path, [])
        assert torch.backends.cudnn.benchmark is expected
    finally:
        torch.backends.cudnn.benchmark = before
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("forced", ["32-true", "bf16-mixed"])
def test_one_setting_forces_the_precision(forced: str, tmp_path: Path) -> None:
    cfg = config.compose_config("train", ["data=digits", f"trainer.precision={forced}"])
    assert make_trainer(cfg, tmp_path, []).precision == forced


def test_optimiser_is_fused() -> None:
    assert Recipe().optimizer_of(models.resnet20()).defaults["fused"] is True


def test_images_live_and_are_augmented_on_the_device() -> None:
    """On the meta device nothing can be copied back: every step of a batch must stay there."""
    split = Split(torch.zeros(8, 3, 32, 32, dtype=torch.uint8), torch.arange(8))
    loader = BatchLoader(split, 4, [0.5] * 3, [0.5] * 3, Augment(), device="meta")
    assert loader.split.images.device.type == "meta"
    images, labels = next(iter(loader))
    assert images.device.type == labels.device.type == "meta"
    assert images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)


class NoReading(pl.Callback):
    """Forbids reading any tensor's value between the first step and the last of an epoch."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        self.read: list[str] = []

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == 1:
            for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy"):
                self.watch(name)

    def watch(self, name: str) -> None:
        original = getattr(Tensor, name)

        def watched(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            if tensor.requires_grad or tensor.grad_fn is not None or tensor.ndim == 0:
                self.read.append(name)
            return original(tensor, *args, **kwargs)

        self.monkeypatch.setattr(Tensor, name, watched)

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == 6:
            self.monkeypatch.undo()


def test_no_step_waits_for_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = config.compose_config("train", [*DIGITS[:2], "trainer.enable_model_summary=false"])
    cfg.data.batch_size = 16
    cfg.trainer.max_epochs, cfg.trainer.limit_train_batches = 1, 7
    data = fitting.make_data(cfg)
    regulariser = RNI()
    watch = NoReading(monkeypatch)
    callbacks = [SparsityRegulariser(regulariser), History(), watch]
    trainer = make_trainer(cfg, tmp_path, callbacks)
    trainer.fit(new_classifier(cfg, data, regulariser, Recipe()), datamodule=data)
    assert watch.read == []


def test_shared_things_are_made_once_within_a_sweep() -> None:
    made: list[str] = []

    def use(key: str) -> str:
        return shared("thing", key, lambda: made.append(key) or key)  # type: ignore[func-returns-value]

    use("a"), use("a")
    assert made == ["a", "a"], "nothing is kept outside of a sweep"
    with between_jobs():
        assert [use("b"), use("b"), use("c"), use("b")] == ["b", "b", "c", "b"]
    assert made == ["a", "a", "b", "c", "b"]


def test_sweep_over_ratios_loads_and_measures_once(
    command: Callable, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    loaded, tested = fitting._loaded, fitting.test
    monkeypatch.setattr(fitting, "_loaded", lambda node: calls.append("load") or loaded(node))
    monkeypatch.setattr(fitting, "test", lambda *a: calls.append("test") or tested(*a))
    sweep = ("prune.ratio=0.3,0.5,0.7", "hydra.sweep.dir=s", *SHORT)
    assert command("prune", "-m", f"checkpoint={trained}", *sweep).status == 0
    assert calls.count("load") == 1
    assert calls.count("test") == 1 + 2 * 3  # dense once; pruned and fine-tuned each
    found = [
        json.loads(Path(f"s/prune.ratio-{r}/summary.json").read_text()) for r in (0.3, 0.5, 0.7)
    ]
    (dense,) = {summary["acc_dense"] for summary in found}
    assert dense == json.loads((trained / "summary.json").read_text())["test_acc"]


@pytest.mark.slow
def test_compiled_training(
    command: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from left_by_runs import NET

    (tmp_path / "tiny.py").write_text(NET)
    monkeypatch.syspath_prepend(tmp_path)
    net = ("arch=custom", "arch._target_=tiny.Net", "data=digits", "trainer.precision=32-true")
    accuracies = []
    for compiled in ("false", "true"):
        run = (f"hydra.run.dir=run_{compiled}", f"compile={compiled}")
        assert command("train", *net, *SHORT, *run).status == 0
        accuracies.append(
            json.loads(Path(f"run_{compiled}", "summary.json").read_text())["test_acc"]
        )
    assert accuracies[0] == pytest.approx(accuracies[1], abs=0.02)


def test_help_and_mistakes_answer_fast(tmp_path: Path) -> None:
    """CPU time, not wall time; the limits are those of the project."""
    code = (
        "import resource, sys, runpy; sys.argv = {argv!r}\n"
        "try: runpy.run_path({script!r}, run_name='__main__')\n"
        "except SystemExit: pass\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "print('cpu', used.ru_utime + used.ru_stime)"
    )
    from conftest import ROOT

    script = str(ROOT / "train.py")
    for argument, limit in (("--help", 1.0), ("method=lasso", 3.0)):
        done = run_python(
            "-c", code.format(argv=["train.py", argument], script=script), cwd=tmp_path
        )
        assert float(done.out.rpartition("cpu")[2]) < limit


@pytest.mark.slow
@pytest.mark.parametrize("name", ["densenet121", "googlenet", "resnet50", "inception_v3"])
def test_plans_and_removes_faster_than_torch_pruning(name: str) -> None:
    """Where it is at least 2.5 times faster: other tests run beside it. docs/pruning.md has all."""
    pytest.importorskip("torch_pruning")
    engines = pytest.importorskip("pruning")  # of benchmarks/
    signal.signal(signal.SIGALRM, engines.stop)
    model, size = engines.build(name)
    x = torch.randn(1, 3, size, size)
    ours, other = engines.Result(), engines.Result()
    for _ in range(5):
        engines.measure(engines.ours, model, x, ours)
        engines.measure(engines.torch_pruning, model, x, other)
    assert not ours.fault + other.fault
    assert ours.seconds < other.seconds

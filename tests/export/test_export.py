"""Exported files compute what the checkpoint does, say what they are, and are whole or absent."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import CLASSES, as_trained, save_checkpoint, spec_of
from conftest import run_python
from refusals import refused
from torch import Tensor, nn

import rni_pl
from rni_pl.errors import CheckpointError, ExportError
from rni_pl.export import exporting, formats
from rni_pl.export.exporting import export
from rni_pl.export.folding import fold
from rni_pl.pruning import prune
from rni_pl.runs.spec import build

onnxruntime = pytest.importorskip("onnxruntime")

BATCHES = (1, 7)
CHAIN = "checkpoint_files.Chain"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    spec = spec_of("rni_pl.models.resnet20", "sigbn")
    return save_checkpoint(as_trained(build(spec)), spec, tmp_path / "some.ckpt")


@pytest.fixture(
    scope="module",
    params=[
        *[
            (f"rni_pl.models.{arch}", norm, ratio)
            for arch in ("vgg16", "resnet56")
            for norm in ("bn", "sigbn")
            for ratio in (0, 0.5, 0.9)
        ],
        ("torchvision.models.resnet50", "bn", 0),
        ("torchvision.models.mobilenet_v2", "sigbn", 0.5),
    ],
    ids=lambda p: "-".join(map(str, p)),
)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A loaded checkpoint, and its program: traced once, written in both formats."""
    target, norm, ratio = request.param
    torch.manual_seed(0)
    spec = spec_of(target, norm)
    model = as_trained(build(spec))
    model, _ = prune(model, torch.zeros(1, 3, 32, 32), ratio)
    path = save_checkpoint(model, spec, tmp_path_factory.mktemp("exported") / "some.ckpt")
    model = rni_pl.load_model(path)
    return model, formats.program_of(exporting.deployable(model, [3, 32, 32]), [3, 32, 32])


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_logits_are_the_checkpoints(exported: Any, suffix: str, tmp_path: Path) -> None:
    model, program = exported
    file = tmp_path / f"model{suffix}"
    formats.FORMATS[suffix].write(program, {}, file)
    if suffix == ".onnx":
        session = onnxruntime.InferenceSession(file)
        run = lambda x: torch.from_numpy(session.run(None, {"images": x.numpy()})[0])  # noqa: E731
    else:
        run = torch.export.load(file).module()
    for batch in BATCHES:
        images = torch.randn(batch, 3, 32, 32)
        with torch.no_grad():
            expected = model(images)
        assert expected.std() > 0.1
        assert (run(images) - expected).abs().max() < 1e-4


def properties(file: Path) -> dict[str, Any]:
    if file.suffix == ".pt2":
        extra = {"metadata.json": ""}
        torch.export.load(file, extra_files=extra)
        return json.loads(extra["metadata.json"])
    found = onnxruntime.InferenceSession(file).get_modelmeta().custom_metadata_map
    texts = ("arch", "dataset", "method", "rni_pl_version")
    return {key: value if key in texts else json.loads(value) for key, value in found.items()}


@pytest.mark.parametrize("name", ["model.onnx", "model.pt2"])
def test_command(command: Callable, checkpoint: Path, tmp_path: Path, name: str) -> None:
    finished = command("export", f"checkpoint={checkpoint}", f"output={name}")
    assert finished.status == 0, finished.err
    assert not finished.err
    said = finished.out.split("logits differ from the checkpoint's by ")[1]
    assert float(said.split()[0]) < 1e-4
    assert sorted(file.name for file in tmp_path.iterdir()) == [name, "some.ckpt"]
    assert properties(tmp_path / name) == {
        "arch": "resnet20",
        "dataset": "some images",
        "method": "rni",
        "image_size": [32, 32],
        "mean": [0.49, 0.48, 0.45],
        "std": [0.20, 0.21, 0.22],
        "classes": CLASSES,
        "rni_pl_version": rni_pl.__version__,
    }


RUN = """
import sys, torch
kind, file = sys.argv[1:]
x = torch.zeros(3, 3, 32, 32)
if kind == "pt2":
    logits = torch.export.load(file).module()(x)
else:
    import onnxruntime
    session = onnxruntime.InferenceSession(file)
    assert session.get_inputs()[0].shape == ["batch", 3, 32, 32]
    (logits,) = session.run(["logits"], {"images": x.numpy()})
print(tuple(logits.shape), "rni_pl" in sys.modules)
"""


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_files_need_nothing_of_this_package(checkpoint: Path, tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"model.{kind}"
    export(checkpoint, file)
    done = run_python("-c", RUN, kind, str(file), cwd=tmp_path, PYTHONPATH="")
    assert done.out.strip() == "(3, 10) False", done.err
    assert str(Path(rni_pl.__file__).parent).encode() not in file.read_bytes()


def test_run_directories_are_exported(trained: Path, pruned: Path, tmp_path: Path) -> None:
    sizes = []
    for run_dir in (trained, pruned):
        assert export(run_dir, tmp_path / "model.onnx") < 1e-4
        sizes.append((tmp_path / "model.onnx").stat().st_size)
        assert properties(tmp_path / "model.onnx")["classes"] == [str(i) for i in range(10)]
    assert sizes[1] < 0.6 * sizes[0]


def break_fold(monkeypatch: pytest.MonkeyPatch, wrong: float) -> None:
    """Let the exporter change one bias of the head."""

    def fold_wrongly(model: nn.Module, example: Tensor) -> nn.Module:
        model = fold(model, example)
        model.get_submodule("fc").bias.data[3] += wrong
        return model

    monkeypatch.setattr(exporting, "fold", fold_wrongly)


@pytest.mark.parametrize("name", ["model.onnx", "model.pt2"])
@pytest.mark.parametrize("wrong", [0.01, torch.nan])
@pytest.mark.parametrize("before", [None, "earlier"])
def test_a_file_that_computes_something_else_is_not_written(
    command: Callable, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    name: str, wrong: float, before: str | None,
) -> None:  # fmt: skip
    if before:
        (tmp_path / name).write_text(before)
    break_fold(monkeypatch, wrong)
    finished = command("export", f"checkpoint={checkpoint}", f"output={name}")
    assert finished.status == 2
    assert finished.err.startswith(f"error: output={name} was not written")
    assert len(finished.err.splitlines()) == 1
    assert {file.name for file in tmp_path.iterdir()} == {"some.ckpt", *([name] if before else [])}
    assert not before or (tmp_path / name).read_text() == before


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A checkpoint whose logits are so large that float32 rounds them by more than 1e-4."""
    spec = spec_of(CHAIN)
    model = as_trained(build(spec))
    nn.init.normal_(model.get_submodule("fc").weight, std=1e4)
    return save_checkpoint(model, spec, tmp_path / "large.ckpt")


def test_large_logits_may_be_rounded(large: Path, tmp_path: Path) -> None:
    assert export(large, tmp_path / "model.pt2", allow=[CHAIN]) > exporting.TOLERANCE
    assert (tmp_path / "model.pt2").is_file()


@pytest.mark.parametrize("wrong", [100.0, torch.inf])
def test_large_logits_may_not_be_others(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: float
) -> None:
    break_fold(monkeypatch, wrong)
    with pytest.raises(ExportError, match="would differ"):
        export(large, tmp_path / "model.pt2", allow=[CHAIN])
    assert not (tmp_path / "model.pt2").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["checkpoint is missing"]),
        (["checkpoint=some.ckpt"], ["output is missing"]),
        (["checkpoint=nowhere", "output=model.onnx"], ["checkpoint=nowhere does not exist"]),
        (["checkpoint=some.ckpt", "output=model.tflite"], ["model.tflite", ".onnx or .pt2"]),
        (["checkpoint=some.ckpt", "output=no/model.onnx"], ["no/model.onnx", "no is not a folder"]),
        (["checkpoint=some.ckpt", "output=a.onnx"], ["a.onnx cannot be written: it is a direc"]),
        (["checkpoint=some.ckpt", "output=model.onnx", "size=3"], ["size"]),
        (["checkpoint=some.ckpt", "output=model.onnx", "allow=all"], ["allow='all'"]),
        (["some.ckpt"], ["some.ckpt"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_mistakes_are_one_line(
    command: Callable, checkpoint: Path, tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    (tmp_path / "a.onnx").mkdir()
    refused(command("export", *arguments), *words)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.onnx", "some.ckpt"]


def test_onnx_without_its_packages(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "find_spec", lambda name: None if name == "onnx" else name)
    with pytest.raises(ExportError, match=r"needs onnx: pip install 'rni_pl\[onnx\]'"):
        export(checkpoint, "model.onnx")


class Locked(nn.Module):
    """No copy can be made of it, so that nothing can be folded."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, num_classes)
        self.lock = threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.bn(self.conv(x)).mean((2, 3)))


class Branch(Locked):
    """torch.export cannot follow a choice that depends on the pixels."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > 0 else -x)


def test_a_network_that_cannot_be_copied_is_exported_unfolded(tmp_path: Path) -> None:
    spec = spec_of("test_export.Locked")
    checkpoint = save_checkpoint(as_trained(build(spec)), spec, tmp_path / "some.ckpt")
    with pytest.raises(CheckpointError, match="allow="):
        export(checkpoint, tmp_path / "model.pt2")
    with pytest.warns(UserWarning, match=r"norm layers stay as they are: lock \(lock\) cannot be"):
        export(checkpoint, tmp_path / "model.onnx", allow=["test_export.Locked"])
    assert (tmp_path / "model.onnx").is_file()


@pytest.mark.filterwarnings("ignore:the norm layers stay")
def test_a_network_that_cannot_be_traced_is_refused(tmp_path: Path) -> None:
    spec = spec_of("test_export.Branch")
    checkpoint = save_checkpoint(as_trained(build(spec)), spec, tmp_path / "some.ckpt")
    with pytest.raises(ExportError, match=r"torch\.export cannot trace Branch") as caught:
        export(checkpoint, tmp_path / "model.onnx", allow=["test_export.Branch"])
    assert "\n" not in str(caught.value)


def test_help_lists_the_settings_without_torch() -> None:
    code = (
        "import sys; sys.argv = ['export', '--help']\n"
        "from rni_pl import cli; cli.export(); print('torch' in sys.modules)"
    )
    done = run_python("-c", code)
    assert "checkpoint:" in done.out
    assert "output:" in done.out
    assert done.out.strip().endswith("False")

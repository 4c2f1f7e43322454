"""Exported files compute what the checkpoint does, say what they are, and are whole or absent."""

import json
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import run_python
from torch import Tensor, nn

import rni_pl
from rni_pl.errors import CheckpointError, ExportError
from rni_pl.export import exporting, formats
from rni_pl.export.exporting import export
from rni_pl.export.folding import fold
from rni_pl.norm import scaled_norms
from rni_pl.pruning import prune
from rni_pl.runs.spec import ModelSpec, build
from rni_pl.structure import structure_of

onnxruntime = pytest.importorskip("onnxruntime")

CLASSES = [f"class {i}" for i in range(10)]
BATCHES = (1, 7)


def as_trained(model: nn.Module) -> nn.Module:
    """Random scales, biases and running statistics, and logits of the size that training gives."""
    for _, norm in scaled_norms(model):
        if norm.bias is None:
            nn.init.normal_(norm.weight)
        else:
            nn.init.uniform_(norm.weight, 0.01, 1)
            nn.init.normal_(norm.bias, std=0.3)
        norm.running_mean.normal_(std=0.3)
        norm.running_var.uniform_(0.5, 2)
    heads = [m for m in model.modules() if isinstance(m, nn.Linear)]
    nn.init.normal_(heads[-1].weight)
    return model.eval()


def spec_of(target: str, norm: str = "bn", **options: Any) -> ModelSpec:
    arch = {"_target_": target, **options}
    mean, std = [0.49, 0.48, 0.45], [0.20, 0.21, 0.22]
    data = {"name": "some images"}
    return ModelSpec(arch, 10, norm, method="rni", classes=CLASSES, data=data, mean=mean, std=std)


def save(model: nn.Module, spec: ModelSpec, path: Path) -> Path:
    """A checkpoint of `model`, as training leaves it."""
    spec = ModelSpec(**{**asdict(spec), "structure": structure_of(model)})
    state = {f"model.{key}": value for key, value in model.state_dict().items()}
    torch.save({"hyper_parameters": {"spec": spec.to_dict()}, "state_dict": state}, path)
    return path


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    spec = spec_of("rni_pl.models.resnet20", "sigbn")
    return save(as_trained(build(spec)), spec, tmp_path / "some.ckpt")


# Folding.


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
    path = save(model, spec, tmp_path_factory.mktemp("exported") / "some.ckpt")
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


# What can go wrong.


def other_bias(model: nn.Module, example: torch.Tensor) -> nn.Module:
    model = fold(model, example)
    model.get_submodule("fc").bias.data[3] += 0.01
    return model


def no_number(model: nn.Module, example: torch.Tensor) -> nn.Module:
    model = fold(model, example)
    model.get_submodule("fc").bias.data[3] = torch.nan
    return model


@pytest.mark.parametrize("name", ["model.onnx", "model.pt2"])
@pytest.mark.parametrize("broken", [other_bias, no_number])
def test_a_file_that_computes_something_else_is_removed(
    command: Callable,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    broken: Callable,
) -> None:
    monkeypatch.setattr(exporting, "fold", broken)
    finished = command("export", f"checkpoint={checkpoint}", f"output={name}")
    assert finished.status == 2
    assert finished.err.startswith(f"error: output={name} was not written")
    assert len(finished.err.splitlines()) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["some.ckpt"]


def test_a_failure_leaves_the_file_that_was_there(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model.onnx"
    file.write_text("earlier")
    monkeypatch.setattr(exporting, "fold", other_bias)
    with pytest.raises(ExportError):
        export(checkpoint, file)
    assert file.read_text() == "earlier"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["checkpoint is missing"]),
        (["checkpoint=some.ckpt"], ["output is missing"]),
        (["checkpoint=nowhere", "output=model.onnx"], ["checkpoint=nowhere does not exist"]),
        (["checkpoint=some.ckpt", "output=model.tflite"], ["model.tflite", ".onnx or .pt2"]),
        (["checkpoint=some.ckpt", "output=no/model.onnx"], ["no/model.onnx", "no is not a folder"]),
        (["checkpoint=some.ckpt", "output=model.onnx", "size=3"], ["size"]),
        (["checkpoint=some.ckpt", "output=model.onnx", "allow=all"], ["allow='all'"]),
        (["some.ckpt"], ["some.ckpt"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_mistakes_are_one_line(
    command: Callable, checkpoint: Path, tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    finished = command("export", *arguments)
    assert finished.status == 2
    assert len(finished.err.splitlines()) == 1
    assert finished.err.startswith("error: ")
    assert all(word in finished.err for word in words), finished.err
    assert [file.name for file in tmp_path.iterdir()] == ["some.ckpt"]


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
    checkpoint = save(as_trained(build(spec)), spec, tmp_path / "some.ckpt")
    with pytest.raises(CheckpointError, match="allow="):
        export(checkpoint, tmp_path / "model.pt2")
    with pytest.warns(UserWarning, match=r"norm layers stay as they are: lock \(lock\) cannot be"):
        export(checkpoint, tmp_path / "model.onnx", allow=["test_export.Locked"])
    assert (tmp_path / "model.onnx").is_file()


@pytest.mark.filterwarnings("ignore:the norm layers stay")
def test_a_network_that_cannot_be_traced_is_refused(tmp_path: Path) -> None:
    spec = spec_of("test_export.Branch")
    checkpoint = save(as_trained(build(spec)), spec, tmp_path / "some.ckpt")
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

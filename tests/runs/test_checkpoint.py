"""Checkpoints load in a fresh process, bit for bit, and never run what they name."""

import pickle
import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import damages, run_python
from left_by_runs import NET, Trap, contents

import rni_pl
from rni_pl.errors import CheckpointError, RniError
from rni_pl.runs.spec import check_trusted
from rni_pl.training.module import Classifier

LOAD = """
import sys, torch
import rni_pl
from rni_pl.training.module import Classifier
path, out = sys.argv[1:]
x = torch.load(out + "/x.pt", weights_only=True)
model = rni_pl.load_model(path)
assert not model.training
file = path if path.endswith(".ckpt") else path + "/checkpoints/best.ckpt"
module = Classifier.load_from_checkpoint(file, map_location="cpu", weights_only=True).eval()
with torch.no_grad():
    torch.save([model(x), module(x)], out + "/logits.pt")
"""


@pytest.mark.parametrize("kind", ["trained", "pruned"])
def test_loads_in_a_fresh_process(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    run_dir = request.getfixturevalue(kind)
    x = torch.randn(5, 3, 32, 32)
    torch.save(x, tmp_path / "x.pt")
    done = run_python("-c", LOAD, str(run_dir), str(tmp_path))
    assert done.status == 0, done.err
    with torch.no_grad():
        expected = rni_pl.load_model(run_dir)(x)
    assert expected.abs().max() > 0
    for logits in torch.load(tmp_path / "logits.pt", weights_only=True):
        assert torch.equal(logits, expected)


def test_pruned_checkpoint_is_smaller_and_says_what_it_is(trained: Path, pruned: Path) -> None:
    dense, small = rni_pl.load_model(trained), rni_pl.load_model(pruned)
    count = [sum(p.numel() for p in model.parameters()) for model in (dense, small)]
    assert count[1] < 0.6 * count[0]
    assert type(small.layer1[0].bn1) is type(dense.layer1[0].bn1) is rni_pl.SigmoidBatchNorm2d
    assert small.model_spec.classes == [str(digit) for digit in range(10)]


def test_run_directory_means_its_best_epoch(trained: Path) -> None:
    by_dir = rni_pl.load_model(trained).state_dict()
    by_file = rni_pl.load_model(trained / "checkpoints" / "best.ckpt").state_dict()
    assert all(torch.equal(by_dir[key], by_file[key]) for key in by_file)


def test_loading_leaves_the_random_state_alone(trained: Path) -> None:
    state = torch.get_rng_state()
    rni_pl.load_model(trained)
    assert torch.equal(state, torch.get_rng_state())


def refusals(path: Path) -> list[str]:
    """What each way of loading says; every one has to refuse."""
    messages = []
    for load in (rni_pl.load_model, Classifier.load_from_checkpoint):
        with pytest.raises(CheckpointError) as caught:
            load(path)
        messages.append(str(caught.value))
    return messages


def test_pickled_code_is_refused_unrun(trained: Path, tmp_path: Path) -> None:
    proof, bad = tmp_path / "proof", tmp_path / "bad.ckpt"
    torch.save({**contents(trained, "best"), "extra": Trap(proof)}, bad)
    assert all("refused" in message for message in refusals(bad))
    plain = tmp_path / "plain.ckpt"
    plain.write_bytes(pickle.dumps(Trap(proof)))
    refusals(plain)
    assert not proof.exists()


@pytest.mark.parametrize("key", ["_instantiator", "_class_path", "_anything"])
def test_lightning_instantiator_is_refused(trained: Path, tmp_path: Path, key: str) -> None:
    checkpoint = contents(trained, "best")
    checkpoint["hyper_parameters"][key] = "pytorch_lightning.cli.instantiate_module"
    torch.save(checkpoint, tmp_path / "bad.ckpt")
    assert all("names code to run" in message for message in refusals(tmp_path / "bad.ckpt"))


@pytest.mark.parametrize(
    "target",
    [
        "os.mkdir",
        "builtins.eval",
        "torch.hub.load",
        "torchvision.datasets.utils.download_url",
        "torchvision.models.get_weight",
        "timm.models.load_checkpoint",
        "rni_pl.runs.spec.locate",
        "rni_pl.runs.spec",
        "",
        7,
    ],
)
def test_untrusted_target_is_refused(trained: Path, tmp_path: Path, target: Any) -> None:
    checkpoint = contents(trained, "best")
    proof = tmp_path / "made"
    checkpoint["hyper_parameters"]["spec"]["arch"] = {"_target_": target, "path": str(proof)}
    torch.save(checkpoint, tmp_path / "bad.ckpt")
    wanted = "is not of rni_pl.models" if isinstance(target, str) else "names no network"
    assert all(wanted in message for message in refusals(tmp_path / "bad.ckpt"))
    assert not proof.exists()


def test_checkpoint_may_not_fetch_weights(trained: Path, tmp_path: Path) -> None:
    checkpoint = contents(trained, "best")
    arch = {"_target_": "torchvision.models.resnet18", "weights": "DEFAULT"}
    checkpoint["hyper_parameters"]["spec"]["arch"] = arch
    torch.save(checkpoint, tmp_path / "bad.ckpt")
    assert all("asks for weights" in message for message in refusals(tmp_path / "bad.ckpt"))


def test_further_networks_are_allowed_by_name(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "their_nets.py").write_text(NET)
    monkeypatch.syspath_prepend(tmp_path)
    import their_nets  # type: ignore[import-not-found]

    net = rni_pl.convert_batchnorm(their_nets.Net())
    checkpoint = contents(trained, "best")
    checkpoint["hyper_parameters"]["spec"]["arch"] = {"_target_": "their_nets.Net"}
    checkpoint["state_dict"] = {f"model.{key}": value for key, value in net.state_dict().items()}
    torch.save(checkpoint, tmp_path / "theirs.ckpt")
    assert all("allow=[their_nets.Net]" in text for text in refusals(tmp_path / "theirs.ckpt"))
    x = torch.randn(2, 3, 8, 8)
    loaded = rni_pl.load_model(tmp_path / "theirs.ckpt", allow=["their_nets.Net"])
    assert torch.equal(loaded(x), net.eval()(x))


@pytest.mark.parametrize("read", [rni_pl.load_model, Classifier.load_from_checkpoint])
def test_names_that_are_allowed_are_a_list(tmp_path: Path, read: Callable) -> None:
    """Any part of a text is in the text."""
    spec = {"arch": {"_target_": "their_nets.Net"}, "num_classes": 10}
    torch.save({"hyper_parameters": {"spec": spec}, "state_dict": {}}, tmp_path / "theirs.ckpt")
    with pytest.raises(TypeError, match="allow must be a list of names, not"):
        read(tmp_path / "theirs.ckpt", allow="my_their_nets.Nets")


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "foreign", "text", "no run"])
def test_unusable_files_are_refused(trained: Path, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "some.ckpt"
    whole = (trained / "checkpoints" / "best.ckpt").read_bytes()
    if damage == "empty":
        path.touch()
    elif damage == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "foreign":
        torch.save({"state_dict": {"conv.weight": torch.zeros(1)}}, path)
    elif damage == "text":
        path.write_text("not a checkpoint")
    elif damage == "no run":
        path = tmp_path
    with pytest.raises(RniError) as caught:
        rni_pl.load_model(path)
    assert "checkpoint=" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "structure",
    [
        {"": {"forward": 3}},
        {"conv1": 5},
        {"conv1": {"weight": 3}},
        {"conv1": {"out_channels": -1}},
        {"conv1": {"out_channels": 2**40}},
        {"conv1": {"groups": 0}},
        {"layer1.0.conv1": {"groups": 3}},
        {"relu": {"inplace": 1}},
        {"nowhere": {"out_channels": 3}},
        7,
    ],
)
def test_structure_sets_only_sizes(trained: Path, tmp_path: Path, structure: Any) -> None:
    checkpoint = contents(trained, "best")
    checkpoint["hyper_parameters"]["spec"]["structure"] = structure
    torch.save(checkpoint, tmp_path / "bad.ckpt")
    assert all(len(message) < 300 for message in refusals(tmp_path / "bad.ckpt"))


@pytest.mark.parametrize("kind", ["trained", "pruned"])
def test_any_damage_is_one_clear_refusal(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    run_dir = request.getfixturevalue(kind)
    path = tmp_path / "some.ckpt"
    x = torch.randn(1, 3, 32, 32)
    sound = rni_pl.load_model(run_dir)(x)
    said = []
    for damaged in damages((run_dir / "checkpoints" / "best.ckpt").read_bytes(), 100):
        path.write_bytes(damaged)
        try:
            logits = rni_pl.load_model(path)(x)
        except CheckpointError as error:
            said.append(str(error))
        else:
            assert torch.equal(logits, sound)
    assert len(said) > 80
    assert not any("\n" in text for text in said)


@pytest.mark.parametrize("how", ["compressed", "overlapping"])
def test_archives_cannot_grow(trained: Path, tmp_path: Path, how: str) -> None:
    """Checking an archive takes a time that its size bounds."""
    path = tmp_path / "some.ckpt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if how == "compressed" else 0) as archive:
        archive.writestr("archive/data/0", bytes(2**20))
        if how == "overlapping":
            (entry,) = archive.infolist()
            archive.filelist += [entry] * 1000
    with pytest.raises(CheckpointError, match="claims to hold more than its bytes"):
        rni_pl.load_model(path)


def test_a_foreign_state_dict_says_the_way(trained: Path, tmp_path: Path) -> None:
    file = tmp_path / "theirs.pth"
    torch.save(rni_pl.load_model(trained).state_dict(), file)
    way = f"python train.py init={file} trainer.max_epochs=0 arch=... data=... makes a run"
    assert all(way in message for message in refusals(file))


def test_weights_that_do_not_fit_are_named(trained: Path, tmp_path: Path) -> None:
    checkpoint = contents(trained, "best")
    del checkpoint["state_dict"]["model.fc.bias"]
    torch.save(checkpoint, tmp_path / "bad.ckpt")
    with pytest.raises(CheckpointError, match=r"fc\.bias"):
        rni_pl.load_model(tmp_path / "bad.ckpt")


@pytest.mark.parametrize(
    ("target", "trusted"),
    [
        ("torchvision.models.resnet18", True),
        ("torchvision.models.resnet.resnet18", True),  # the same by the name of its file
        ("torchvision.models.vgg.resnet18", False),
        ("torchvision.models.resnet.ResNet", False),
        ("torchvision.models_of_mine.resnet18", False),
    ],
)
def test_registered_networks_are_trusted_by_either_name(target: str, trusted: bool) -> None:
    with nullcontext() if trusted else pytest.raises(CheckpointError, match="is not of"):
        check_trusted({"_target_": target})

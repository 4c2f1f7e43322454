"""``init=`` finds the network's weights wherever a file keeps them."""

import contextlib
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from masking import randomise
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from rni_pl.errors import CheckpointError
from rni_pl.norm import convert_batchnorm
from rni_pl.training.warmstart import has_sigbn, load_state, read_state


@contextlib.contextmanager
def silence() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def weights(model: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    return {f"{prefix}{key}": value for key, value in model.state_dict().items()}


def small(width: int = 4) -> nn.Module:
    """Randomised, so that no two are alike."""
    conv, norm = nn.Conv2d(3, width, 3), nn.BatchNorm2d(width)
    return randomise(nn.Sequential(OrderedDict(conv=conv, bn=norm, fc=nn.Linear(width, 2))))


LOSS = {"loss.weight": torch.ones(10)}
ADAM = {"state": {0: {"exp_avg": torch.ones(3), "step": torch.ones(())}}, "param_groups": []}

# What widespread scripts save: the file, made of the network `n` and another one of the same
# names `o`; what the one line says was left out (None: no line).
FILES: dict[str, tuple[Callable[[nn.Module, nn.Module], dict], str | None]] = {
    "net": (lambda n, o: {"net": weights(n), "acc": 91.0, "epoch": 3}, None),
    "model_state_dict": (lambda n, o: {"epoch": 1, "model_state_dict": weights(n)}, None),
    "optimizer": (lambda n, o: {"optimizer_state_dict": ADAM, "params": weights(n)}, None),
    "deep": (lambda n, o: {"best": {"model": {"state_dict": weights(n, "module.")}}}, None),
    "ema alone": (lambda n, o: {"epoch": 1, "ema": weights(n, "module.")}, None),
    "timm": (
        lambda n, o: {"state_dict_ema": weights(o), "state_dict": weights(n)},
        "left out state_dict_ema",
    ),
    "torchvision": (
        lambda n, o: {"model": weights(n), "model_ema": {"n_averaged": torch.ones(()),
                      **weights(o, "module.")}},
        "left out model_ema.module",
    ),
    "averaged": (lambda n, o: AveragedModel(n).state_dict(), "left out n_averaged"),
    "loss": (lambda n, o: {"state_dict": {**LOSS, **weights(n, "model.")}}, "left out loss.weight"),
    "bare loss": (lambda n, o: {**weights(n), **LOSS, "epoch": 3}, "left out loss.weight, epoch"),
    "wrapper": (
        lambda n, o: {"state_dict": {**weights(n, "net.student."), **weights(o, "net.ema.")}},
        "left out state_dict.net.ema",
    ),
    "other width": (
        lambda n, o: {"state_dict": {**weights(small(9), "teacher."), **weights(n, "student.")}},
        "left out teacher.conv.weight, teacher.conv.bias, teacher.bn.weight, teacher.bn.bias, "
        "teacher.bn.running_mean and 4 more",
    ),
    "other head": (
        lambda n, o: {**{k.replace("fc.", "head."): v for k, v in weights(n).items()}, "epoch": 3},
        "left out epoch",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_the_networks_weights_are_found_in_a_file(tmp_path: Path, kind: str) -> None:
    trained, model, path = small(), small(), tmp_path / "w.pth"
    make, line = FILES[kind]
    torch.save(make(trained, small()), path)
    with pytest.warns(UserWarning, match=f"init=.*: {re.escape(line)}$") if line else silence():
        load_state(model, read_state(path), path)
    for key, value in trained.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key


BIGGER = {"conv.extra": torch.ones(2)}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda n: {**weights(n), **BIGGER}, 'Unexpected key.* "conv.extra"'),
        (
            lambda n: {"net": {**weights(n, "model."), **weights(nn.Sequential(n), "model.bn.")}},
            "0",
        ),
        (lambda n: {**weights(n[:2], "model."), **LOSS}, 'Missing key.* "fc.weight"'),
        (lambda n: {"net": weights(small(5)), "ema": weights(small(9))}, "size mismatch"),
        (lambda n: {"optimizer": ADAM}, "Missing key"),
        (lambda n: {**weights(n[:2]), **LOSS}, 'Missing key.* Unexpected key.* "loss.weight"'),
    ],
)
def test_foreign_keys_are_left_out_only_beside_a_whole_network(
    tmp_path: Path, make: Callable, words: str
) -> None:
    path = tmp_path / "w.pth"
    torch.save(make(small()), path)
    with pytest.raises(CheckpointError, match=f"init=.* does not fit the network: .*{words}"):
        load_state(small(), read_state(path), path)


def test_files_that_hold_themselves_are_read(tmp_path: Path) -> None:
    trained, path = small(), tmp_path / "w.pth"
    contents: dict = {"net": weights(trained)}
    contents["again"] = contents["net"]["again"] = contents
    torch.save(contents, path)
    assert list(read_state(path)) == ["net"]


def test_sigbn_is_told_wherever_it_is_kept(tmp_path: Path) -> None:
    sigmoid, path = convert_batchnorm(small()), tmp_path / "w.pth"
    torch.save({"net": weights(sigmoid, "module."), **LOSS}, path)
    assert has_sigbn(read_state(path), small())
    torch.save({"net": weights(small(), "module."), **LOSS}, path)
    assert not has_sigbn(read_state(path), small())

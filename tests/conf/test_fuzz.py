"""Whatever a setting is given: one clear line or a whole run, never a stack trace from inside."""

import os
import tempfile
from pathlib import Path

import pytest
from child_processes import SHORT_RUN
from conftest import run_command
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from rni_pl.config import compose_config

TINY = (*SHORT_RUN[2:], "trainer.max_epochs=1", "trainer.limit_train_batches=2")
# These only make a run long, or large, where they are allowed.
CAPPED = {
    "trainer.max_epochs": 2, "trainer.min_epochs": 2, "data.padding": 64, "compile": 0,
    "trainer.devices": 1, "trainer.num_nodes": 1, "trainer.overfit_batches": 2,
    "trainer.accumulate_grad_batches": 100, "prune.recalibrate": 5,
}  # fmt: skip


def leaves(config: DictConfig, prefix: str = "") -> list[str]:
    """Every setting by its full name, groups of settings included."""
    found = []
    for key in config:
        name = f"{prefix}{key}"
        found.append(name)
        if OmegaConf.is_dict(config._get_node(key)) and config._get_node(key)._content:
            found += leaves(config[key], f"{name}.")
    return found


STRANGE = [
    "nan", "inf", "-inf", "-1", "0", "-0.0", "1", "2", "0.5", "1.5", "1e308", "-1e308", "1e39",
    "1e-320", "9" * 25, "-" + "9" * 25, "2147483648", "true", "false", "null", "", "''", "' '",
    "[]", "{}", "[1,2]", "[nan]", "[[]]", "[null,1]", "{a:1}", "{_target_:nowhere.at_all}", "abc",
    "nowhere.at_all", "日本語", "ünï", "'\U0001f600'", "'a b'", "'\\0'", "..", "/", "???", "auto",
    "${seed}", "${nowhere}", "${oc.env:NOWHERE}", "a=b", "1:2:3", "00:00:00:01", "0x10", "1_000",
]  # fmt: skip
VALUES = st.one_of(
    st.sampled_from(STRANGE),
    st.sampled_from(STRANGE),
    st.integers().map(str),
    st.floats().map(repr),
    st.lists(st.one_of(st.integers(-3, 3), st.floats(-2, 2)), max_size=4).map(str),
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12).map(
        lambda text: "'" + text.replace("\\", "").replace("'", "") + "'"
    ),
)


def long(key: str, value: str) -> bool:
    """Whether a run with it is one that this test has no time for."""
    if key not in CAPPED:
        return False
    try:
        return float(value) > CAPPED[key]
    except ValueError:
        return value in ("true", "auto", "[1,2]")


def judge(stage: str, arguments: tuple[str, ...], capsys: pytest.CaptureFixture) -> None:
    """Run a command in an empty directory; see what it says and leaves behind."""
    before = Path.cwd()
    capsys.readouterr()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            status = run_command(stage, *arguments, "hydra.run.dir=run")
        finally:
            os.chdir(before)
        err = capsys.readouterr().err
        run_dir = Path(folder) / "run"
        assert "Traceback" not in err, err
        lines = [line for line in err.splitlines() if not line.startswith("warning: ")]
        if status == 0:
            assert (run_dir / "summary.json").is_file()
            return
        assert status == 2, err
        assert len(lines) == 1, err
        assert lines[0].startswith("error: "), err
        # A run that failed as it trained says so; any other leaves nothing.
        assert not run_dir.exists() or (run_dir / "failure.json").is_file()


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("fuzz") / "dense"
    assert run_command("train", *SHORT_RUN[:2], *TINY, f"hydra.run.dir={run_dir}") == 0
    return run_dir


FUZZ = settings(
    max_examples=130,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],
    report_multiple_bugs=True,
)
TRAIN = leaves(compose_config("train", [*SHORT_RUN[:2], "data=digits"]))
PRUNE = leaves(compose_config("prune", ["checkpoint=x"], check_it=False))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@given(key=st.sampled_from(TRAIN), value=VALUES)
@FUZZ
def test_train(capsys: pytest.CaptureFixture, key: str, value: str) -> None:
    if not long(key, value):
        judge("train", (*SHORT_RUN[:2], *TINY, f"{key}={value}"), capsys)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@given(key=st.sampled_from(PRUNE), value=VALUES)
@FUZZ
def test_prune(capsys: pytest.CaptureFixture, dense: Path, key: str, value: str) -> None:
    given = (f"checkpoint={dense}", *(item for item in TINY if "data=" not in item))
    if not long(key, value):
        judge("prune", (*given, f"{key}={value}"), capsys)

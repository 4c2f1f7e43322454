"""What `--help` prints, in Hydra's manner.

Hydra's own help makes a deep copy of all configurations for each group that it lists, which takes
most of its time; this reads the names of the files.
"""

from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rni_pl.config import config_dir
from rni_pl.errors import ConfigError
from rni_pl.explaining import explained

FLAGS = {"-h", "--help"}


def of_command(name: str, arguments: Sequence[str]) -> str:
    """The groups and the settings of a command, as the arguments beside ``--help`` make them.

    Raises:
        ConfigError: the arguments make no configuration.
    """
    given = get_args_parser().parse_args(arguments)
    overrides = [one for one in given.overrides if not _sweeps(one)]
    if given.config_dir is not None:
        folder = Path(given.config_dir).absolute()
        if not folder.is_dir():
            raise ConfigError(f"--config-dir={given.config_dir} is not a directory")
        overrides.insert(0, f'hydra.searchpath=["file://{folder}"]')
    try:
        with initialize_config_dir(config_dir(), version_base="1.3"):
            config = compose(name, overrides, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise explained(error) from error
    folders = [config_dir(), *config.hydra.searchpath]
    own = {key: value for key, value in config.items_ex(resolve=False) if key != "hydra"}
    return _TEMPLATE.format(
        name=name,
        about=_ABOUT[name],
        groups="\n".join(_groups([Path(one.removeprefix("file://")) for one in folders])),
        config=OmegaConf.to_yaml(DictConfig(own)).rstrip(),
    )


def _sweeps(override: str) -> bool:
    """Whether an override has several values, of which a configuration takes one."""
    try:
        return OverridesParser.create().parse_override(override).is_sweep_override()
    except HydraException:
        return False  # composing says what is wrong with it


def of_tool(name: str) -> str:
    """The settings of a command that has no groups: its configuration file, comments and all."""
    return (Path(config_dir()) / f"{name}.yaml").read_text().rstrip()


def _groups(folders: Sequence[Path]) -> list[str]:
    """A line for each group: its name and what may be chosen."""
    choices: dict[str, set[str]] = {}
    for folder in folders:
        for file in folder.glob("*/**/*.yaml"):
            group = file.parent.relative_to(folder).as_posix()
            choices.setdefault(group, set()).add(file.stem)
    return [f"{group}: {', '.join(sorted(choices[group]))}" for group in sorted(choices)]


_ABOUT = {
    "train": "Train a network with a sparsity regulariser on its BatchNorm scales.",
    "prune": "Remove channels of a trained network (checkpoint=RUN), and fine-tune it.",
}
_TEMPLATE = """\
{about}

    python {name}.py [GROUP=CHOICE ...] [SETTING=VALUE ...]

== Configuration groups ==
Compose your configuration from those groups (group=option)

{groups}

== Config ==
Override anything in the config (foo.bar=value)

{config}

Powered by Hydra (https://hydra.cc)
Use --hydra-help to view Hydra specific help"""

"""What Hydra and OmegaConf find wrong, in one line that says what is allowed."""

import re

from hydra.errors import MissingConfigException, OverrideParseException

from rni_pl import naming
from rni_pl.errors import ConfigError, UnknownChoiceError


def explained(error: Exception) -> ConfigError:
    """What Hydra or OmegaConf found wrong, as an error of ours."""
    kind = UnknownChoiceError if _unknown_choice(error) else ConfigError
    return kind(one_line(error))


def _unknown_choice(error: Exception) -> str | None:
    """The override that asked for a configuration that is not there."""
    if not (isinstance(error, MissingConfigException) and error.missing_cfg_file):
        return None
    group, _, choice = str(error.missing_cfg_file).rpartition("/")
    return f"{group or 'config'}={choice}"


def one_line(error: Exception) -> str:
    """What Hydra or OmegaConf found wrong, in one line that names the key and what is allowed."""
    override = _unknown_choice(error)
    if override:
        options = getattr(error, "options", None) or []
        allowed = ", ".join(option for option in options if option not in _BASES)
        hint = "; others come with an extra: docs/many-devices.md" if "hydra/" in override else ""
        return f"{override} is unknown; allowed: {allowed}{hint}"
    unknown = naming.unknown_override(error)
    if unknown:
        return unknown
    not_parsed = _not_parsed(error)
    if not_parsed:
        return not_parsed
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    key = getattr(error, "full_key", None)
    prefix = f"{key}: " if key and key not in (lines or [""])[0] else ""
    return prefix + " ".join(line for line in lines if not line.startswith(_NOISE))


def _not_parsed(error: Exception) -> str | None:
    """What to say of an override that Hydra's grammar does not take, or takes for several."""
    several = re.match(r"Ambiguous value for argument '(.*)'\n", str(error))
    if several:
        given = several[1]
    elif isinstance(error, OverrideParseException):
        given = str(error.override)
        if "=" not in given:
            return f"{given!r} is no setting; settings are given as KEY=VALUE (--help has them)"
    else:
        return None
    key, _, value = given.partition("=")
    if not re.search(r"[=,#&;:(){}\[\]'\" ]", value):
        return None
    quoted = value.replace('"', r"\"")
    sweeps = ", and a sweep over several values needs -m" if several else ""
    return (
        f"{given} is not understood; a value with one of , = # : and the like is put in quotes of "
        f"its own: '{key}=\"{quoted}\"'{sweeps}"
    )


_BASES = ("in_memory",)
_NOISE = ("object_type=", "full_key:", "Set the environment variable", "Config search path")

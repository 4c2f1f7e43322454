"""Starting from trained weights: reading a file, finding the network's in it, and loading them."""

from pathlib import Path
from typing import Any

from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn

from rni_pl.errors import CheckpointError
from rni_pl.norm import scaled_norms
from rni_pl.runs import checkpoint

State = dict[str, Any]


def read_state(path: str | Path) -> dict[str, State]:
    """Every dictionary with tensors in a file, by its place there: ``""``, ``ema.module``, ...

    Which one has the network's weights, and under which prefix, the network itself decides.

    Raises:
        CheckpointError: missing, damaged, or there is no such dictionary.
    """
    file = Path(path)
    if file.is_dir():
        raise CheckpointError(f"init={path} is a directory; allowed: the file of a state dict")
    if not file.is_file():
        raise CheckpointError(f"init={path} does not exist")
    found: dict[str, State] = {}
    waiting, seen = [("", checkpoint.read_plain(file, "init"))], set()
    for place, one in waiting:  # which grows meanwhile
        if not isinstance(one, dict) or id(one) in seen:
            continue
        seen.add(id(one))
        named = {key: value for key, value in one.items() if isinstance(key, str)}
        if any(isinstance(value, Tensor) for value in named.values()):
            found[place] = named
        waiting += [(f"{place}.{key}".lstrip("."), value) for key, value in one.items()]
    if not found:
        raise CheckpointError(f"init={path} holds no state dict")
    return found


def load_state(model: nn.Module, states: dict[str, State], path: str | Path) -> None:
    """Load into `model`, in place, and say in a line what of the file was left out.

    A classifier head may have another name.

    Raises:
        CheckpointError: names or shapes do not fit.
    """
    own = model.state_dict()
    state, left_out = _find(model, states)
    counters = [key for key in own if _is_counter(key) and key not in state]
    state |= {key: own[key] for key in counters}
    missing = [key for key in own if key not in state]
    foreign = [key for key, value in state.items() if key not in own and isinstance(value, Tensor)]
    if len(missing) == len(foreign) <= 2:  # weight and bias of a linear layer
        pairs = list(zip(missing, foreign, strict=True))
        if all(_is_head(model, mine, theirs) for mine, theirs in pairs):
            state |= {mine: state.pop(theirs) for mine, theirs in pairs}
            missing = []
    if not missing:
        # What is named like a part of the network makes it another network, and is refused.
        parts = {key.partition(".")[0] for key in own}
        beside = [key for key in state if key not in own and key.partition(".")[0] not in parts]
        left_out += beside
        state = {key: value for key, value in state.items() if key not in beside}
    try:
        checkpoint.load_weights(model, state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"init={path} does not fit the network: {reason}") from error
    if left_out:
        more = f" and {len(left_out) - 5} more" if len(left_out) > 5 else ""
        rank_zero_warn(f"init={path}: left out {', '.join(left_out[:5])}{more}")


def has_sigbn(states: dict[str, State], model: nn.Module) -> bool:
    """Whether a file has SigBN (no biases) where `model` has BatchNorm."""
    state, _ = _find(model, states)
    names = [name for name, norm in scaled_norms(model) if norm.bias is not None]
    scales, biases = ({f"{name}.{key}" for name in names} for key in ("weight", "bias"))
    return bool(names) and scales <= state.keys() and not biases & state.keys()


def _find(model: nn.Module, states: dict[str, State]) -> tuple[State, list[str]]:
    """What fits the network best, without its prefix; the names of what fits as well or is beside.

    Of several that fit, it is the first that is no moving average.
    """
    own = {key: _shape(value) for key, value in model.state_dict().items() if not _is_counter(key)}
    misfits = {
        (place, prefix): sum(_shape(state.get(prefix + key)) != own[key] for key in own)
        for place, state in states.items()
        for prefix in _prefixes(state, own)
    }
    if not misfits:
        return dict(next(iter(states.values()))), []
    fewest = min(misfits.values())
    best = [found for found, count in misfits.items() if count == fewest]
    best.sort(key=lambda found: "ema" in ".".join(found).lower())
    place, prefix = best[0]
    state = {k.removeprefix(prefix): v for k, v in states[place].items() if k.startswith(prefix)}
    others = [f"{place}.{prefix}".strip(".") for place, prefix in best[1:]]
    starts = tuple(start for where, start in best if where == place)
    return state, others + [key for key in states[place] if not key.startswith(starts)]


def _prefixes(state: State, own: dict[str, Any]) -> list[str]:
    """What stands in front of a name of the network's in some key: ``""``, ``module.``, ..."""
    starts = ((key, 0) for key in state)
    dots = ((key, i + 1) for key in state for i, letter in enumerate(key) if letter == ".")
    return list(dict.fromkeys(key[:at] for key, at in (*starts, *dots) if key[at:] in own))


def _is_counter(key: str) -> bool:
    """Of batches; old files have none."""
    return key.endswith("num_batches_tracked")


def _shape(value: Any) -> Any:
    return value.shape if isinstance(value, Tensor) else None


def _is_head(model: nn.Module, mine: str, theirs: str) -> bool:
    """Whether two keys name the same parameter of a linear layer under two names."""
    layer, _, parameter = mine.rpartition(".")
    linear = isinstance(model.get_submodule(layer), nn.Linear)
    return linear and parameter == theirs.rpartition(".")[2]

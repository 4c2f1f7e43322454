"""Starting from trained weights: reading a state dict, and loading it."""

from pathlib import Path

from torch import Tensor, nn

from rni_pl import checkpoint
from rni_pl.errors import CheckpointError
from rni_pl.norm import scaled_norms

WRAPPED = ("state_dict", "model")  # what training scripts keep it under
PREFIXES = ("module.", "model.", "_orig_mod.")  # of parallel, Lightning's and compiled networks


def read_state(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a plain state dict, also under ``state_dict`` or ``model``, or with prefixes.

    Raises:
        CheckpointError: missing, damaged, or no state dict.
    """
    file = Path(path)
    if file.is_dir():
        raise CheckpointError(f"init={path} is a directory; allowed: the file of a state dict")
    if not file.is_file():
        raise CheckpointError(f"init={path} does not exist")
    state = checkpoint.read_plain(file, "init")
    while isinstance(state, dict) and (
        within := next((state[key] for key in WRAPPED if isinstance(state.get(key), dict)), None)
    ):
        state = within
    tensors = isinstance(state, dict) and all(isinstance(v, Tensor) for v in state.values())
    if not state or not tensors:
        raise CheckpointError(f"init={path} holds no state dict")
    while prefix := next((p for p in PREFIXES if all(k.startswith(p) for k in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def load_state(model: nn.Module, state: dict[str, Tensor], path: str | Path) -> None:
    """Load into `model`, in place; a classifier head may have another name.

    Raises:
        CheckpointError: names or shapes do not fit.
    """
    own = model.state_dict()
    counters = [key for key in own if key.endswith("num_batches_tracked") and key not in state]
    state = {**state, **{key: own[key] for key in counters}}
    missing = [key for key in own if key not in state]
    foreign = [key for key in state if key not in own]
    if len(missing) == len(foreign) <= 2:  # weight and bias of a linear layer
        pairs = list(zip(missing, foreign, strict=True))
        if all(_is_head(model, mine, theirs) for mine, theirs in pairs):
            state = {**state, **{mine: state[theirs] for mine, theirs in pairs}}
            state = {key: value for key, value in state.items() if key not in foreign}
    try:
        checkpoint.load_weights(model, state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"init={path} does not fit the network: {reason}") from error


def has_sigbn(state: dict[str, Tensor], model: nn.Module) -> bool:
    """Whether a state dict has SigBN (no biases) where `model` has BatchNorm."""
    names = [name for name, norm in scaled_norms(model) if norm.bias is not None]
    scales, biases = ({f"{name}.{key}" for name in names} for key in ("weight", "bias"))
    return bool(names) and scales <= state.keys() and not biases & state.keys()


def _is_head(model: nn.Module, mine: str, theirs: str) -> bool:
    """Whether two keys name the same parameter of a linear layer under two names."""
    layer, _, parameter = mine.rpartition(".")
    linear = isinstance(model.get_submodule(layer), nn.Linear)
    return linear and parameter == theirs.rpartition(".")[2]

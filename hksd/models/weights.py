"""Weights as people exchange them: safetensors with a metadata header, written atomically, read with a clear error."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from hksd.errors import UserError
from hksd.files import write_atomically
from hksd.models.taps import TappedNet

PREFIXES = ("module.", "_orig_mod.", "network.")  # of DataParallel, of torch.compile, of our own wrapper
WRAPPERS = ("state_dict", "model")  # keys under which training scripts keep the weights, beside epoch and optimiser


def save(path: Path, module: nn.Module, metadata: Mapping[str, str]) -> None:
    """Write the weights of `module` with text metadata, under the names that the bare network gives them."""
    state = {name: value.detach().cpu().contiguous() for name, value in _bare(module).state_dict().items()}
    write_atomically(path, to_bytes(state, dict(metadata)))


def _bare(module: nn.Module) -> nn.Module:
    return module.bare if isinstance(module, TappedNet) else module


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read weights and metadata from .safetensors, or a state dict (no metadata) from .pt / .pth, also a wrapped one.

    Raises:
        UserError: the file is missing, damaged or of another kind.
    """
    try:
        if path.suffix == ".safetensors":
            with safe_open(str(path), framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (OSError, SafetensorError, RuntimeError, EOFError) as error:
        raise UserError(f"{path}: damaged or no weights file: {error}") from error
    except Exception as error:  # torch.load raises pickle.UnpicklingError and many others for foreign content
        raise UserError(f"{path}: not a plain state dict (weights only): {str(error).splitlines()[0]}") from error
    for key in WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path}: not a plain state dict; save `model.state_dict()` with torch.save or as safetensors")
    return state, {}


def check(path: Path) -> None:
    """Look whether a .safetensors file is whole, by its header and its length.

    Raises:
        FileNotFoundError: there is none.
        OSError: it cannot be read.
        UserError: it is cut off, or of another kind.
    """
    path.open("rb").close()  # what is raised here names the file
    try:
        with safe_open(str(path), framework="pt"):
            pass
    except SafetensorError as error:
        raise UserError(f"{path}: damaged or no weights file: {error}") from error


def load_into(module: nn.Module, path: Path) -> dict[str, str]:
    """Load weights into `module` and return the metadata.

    Raises:
        UserError: keys or shapes do not fit; the message says which.
    """
    state, metadata = read(path)
    own = _bare(module).state_dict()
    state = _without_prefix(state, own)
    faults = [
        *_other_classes(module, state, own),
        *(f"missing {name}" for name in own if name not in state),
        *(f"unexpected {name}" for name in state if name not in own),
        *(
            f"{name} is {tuple(state[name].shape)}, the network has {tuple(own[name].shape)}"
            for name in own
            if name in state and own[name].shape != state[name].shape
        ),
    ]
    if faults:
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise UserError(f"{path}: the weights do not fit the network: {'; '.join(faults[:5])}{more}")
    _bare(module).load_state_dict(state)
    return metadata


def _without_prefix(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take away what wrappers put before every name, unless the network knows the names as they are."""
    for prefix in PREFIXES:
        if state and not set(state) & set(own) and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _other_classes(module: nn.Module, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """The fault that weights are of a network with other classes than the data."""
    name = f"{module.classifier_path}.weight" if isinstance(module, TappedNet) else ""
    if name not in state or name not in own or len(state[name]) == len(own[name]):
        return []
    return [f"they tell {len(state[name])} classes apart, but the data has {len(own[name])}"]

"""Weights as people exchange them: safetensors with a metadata header, written atomically, read with a clear error."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from hksd.checkpoint import write_atomically
from hksd.errors import UserError


def save(path: Path, module: nn.Module, metadata: Mapping[str, str]) -> None:
    """Write the weights of `module` with text metadata."""
    state = {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
    write_atomically(path, to_bytes(state, dict(metadata)))


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read weights and metadata from .safetensors, or a plain state dict (no metadata) from .pt / .pth.

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
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path}: not a plain state dict; save `model.state_dict()` with torch.save or as safetensors")
    return state, {}


def load_into(module: nn.Module, path: Path) -> dict[str, str]:
    """Load weights into `module` and return the metadata.

    Raises:
        UserError: keys or shapes do not fit; the message says which.
    """
    state, metadata = read(path)
    own = module.state_dict()
    faults = [f"missing {name}" for name in own if name not in state]
    faults += [f"unexpected {name}" for name in state if name not in own]
    faults += [
        f"{name} is {tuple(state[name].shape)}, the network has {tuple(own[name].shape)}"
        for name in own
        if name in state and own[name].shape != state[name].shape
    ]
    if faults:
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise UserError(f"{path}: the weights do not fit the network: {'; '.join(faults[:5])}{more}")
    module.load_state_dict(state)
    return metadata

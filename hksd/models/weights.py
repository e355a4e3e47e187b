"""Weights as people exchange them: safetensors with a metadata header, written atomically, read with a clear error."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from hksd.errors import UserError
from hksd.files import write_atomically
from hksd.models import checkpoints, foreign
from hksd.models.foreign import Fit, Names
from hksd.models.recognised import recognised
from hksd.models.staged import StagedNet
from hksd.models.taps import TappedNet

# Names of what a weight is computed from -> what to do before it is saved.
_WRAPPED_WEIGHTS = {
    re.compile(
        r"\.parametrizations\."
    ): "they were saved under a parametrization (weight_norm, spectral_norm); bake it in "
    "before you save them: torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight')",
    re.compile(r"\.weight_[gv]$"): "they were saved under weight_norm; bake it in before you save them: "
    "torch.nn.utils.remove_weight_norm(layer)",
    re.compile(r"\.weight_mask$"): "they were saved while they were pruned; bake it in before you save them: "
    "torch.nn.utils.prune.remove(layer, 'weight')",
    re.compile(
        r"\.weight_[uv]$|\.weight_orig$"
    ): "they were saved under spectral_norm; bake it in before you save them: "
    "torch.nn.utils.remove_spectral_norm(layer)",
}
log = logging.getLogger(__name__)


def save(path: Path, module: nn.Module, metadata: Mapping[str, str]) -> None:
    """Write the weights of `module` with text metadata, under the names that the bare network gives them.

    A tensor that the network shares is written once, under its first name.
    """
    names = Names(_bare(module))
    state = {group[0]: names.tensors[group[0]].detach().cpu().contiguous() for group in names.groups}
    write_atomically(path, to_bytes(_apart(state), dict(metadata)))


def _apart(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor in memory of its own: two parameters may look into one."""
    seen: set[int] = set()
    apart = {}
    for name, value in state.items():
        memory = value.untyped_storage().data_ptr()
        apart[name] = value.clone() if memory in seen else value
        seen.add(memory)
    return apart


def _bare(module: nn.Module) -> nn.Module:
    return module.bare if isinstance(module, TappedNet) else module


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the weights of a file, the largest set if it has several, and the metadata of .safetensors.

    Raises:
        UserError: the file is missing, damaged or of another kind.
    """
    content = checkpoints.read(path)
    return max((group.tensors for group in content.sets), key=len), content.metadata


def header(path: Path) -> dict[str, str]:
    """The metadata of a .safetensors file; nothing where there are none, or it is another file."""
    try:
        with safe_open(str(path), framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError):
        return {}


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

    The weights may stand under keys and prefixes of wrappers, in half precision, and for one of our families under the
    names of another collection; what is taken from a file that holds more is a warning.

    Raises:
        UserError: the file holds no weights, or keys or shapes do not fit; the message says which.
    """
    content, network = checkpoints.read(path), _bare(module)
    own, names = Names(network).unwrapped()  # it may be wrapped itself
    found = foreign.fits(content.sets, own, by_order=False)
    if not found and isinstance(network, StagedNet):
        found = foreign.fits(content.sets, own, by_order=True)
    if not found:
        raise UserError(f"{path}: {_misfit(module, content, own)}")
    if said := _remarks(found):
        log.warning("%s: %s", path, said)
    taken = {names[name]: value for name, value in found[0].tensors.items()}
    network.load_state_dict(taken, strict=False)  # what is missing are other names, and counters
    return content.metadata


def _remarks(found: Sequence[Fit]) -> str:
    """What is to be said of the weights that are taken, in one line; empty where nothing is."""
    fit, *others = found
    said = []
    if fit.pairs:
        first, last = (f"'{theirs}' as '{ours}'" for theirs, ours in fit.pairs)
        said.append(
            f"its names are those of another collection; its {len(fit.tensors)} tensors are taken by their order, "
            f"which agrees in kind and shape ({first} to {last})"
        )
    places = [other.where for other in others]
    left = [f"'{place}' ({count})" for place, count in fit.left_out.items() if not _within(places, place)]
    if others or left:
        said.append(f"the weights under {_quoted(fit.where)} are taken")
    if others:
        said.append(f"those under {', '.join(map(_quoted, places))} fit as well")
    if left:
        said.append(f"left out: {', '.join(left[:5])}")
    if others:
        said.append("to use others, save them alone")
    return "; ".join(said)


def _within(places: Sequence[str], place: str) -> bool:
    return any(f"{other}.".startswith(f"{place}.") for other in places)


def _quoted(place: str) -> str:
    return f"'{place}'" if place else "the top"


def _misfit(module: nn.Module, content: checkpoints.Content, own: Names) -> str:
    """Why no set of a file fits: the nearest one, its faults, and what network it is of."""
    where, inside = foreign.closest(content.sets, own)
    classes = _other_classes(module, inside, own.tensors)
    faults = [*classes, *foreign.faults(inside, own)]
    head = f"{module.classifier_path}." if isinstance(module, TappedNet) else ""
    if not all(fault.startswith(head) for fault in faults[len(classes) :]) and (network := recognised(content.sets)):
        faults.insert(0, f"they are of {network}")
    more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
    said = [f"the weights do not fit the network: {'; '.join(faults[:5])}{more}"]
    if where:
        said.append(f"'{where}', which a wrapper or the file puts before their names, is taken away")
    said += [cure for mark, cure in _WRAPPED_WEIGHTS.items() if any(mark.search(name) for name in inside)][:1]
    if content.note:
        said.append(f"the file {content.note}")
    return "; ".join(said)


def _other_classes(module: nn.Module, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """The fault that weights are of a network with other classes than the data."""
    name = f"{module.classifier_path}.weight" if isinstance(module, TappedNet) else ""
    if name not in state or name not in own or state[name].shape[1:] != own[name].shape[1:]:
        return []
    if len(state[name]) == len(own[name]):
        return []
    return [f"they tell {len(state[name])} classes apart, but the data has {len(own[name])}"]

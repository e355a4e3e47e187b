"""Files of weights as other programs write them: every set of tensors in one, or what it is in place of weights."""

from __future__ import annotations

import logging
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from hksd.errors import UserError
from hksd.models.pickles import HARMLESS, StandIn, is_module, line, load, unsafe

log = logging.getLogger(__name__)

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
DEPTH = 8  # how deep sets of weights are looked for
LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # how torch before 1.6 began a file
_PART = re.compile(r"-\d+-of-(?!0*1\.)\d+\.\w+$|\.index\.json$")  # names on the Hub
_UNPACK = "unpack it and name the file of weights inside"
_KINDS = (
    (b"version https://git-lfs", "a pointer of Git LFS, not the weights: run `git lfs pull` where it comes from"),
    (b"\x89HDF", "an HDF5 file (Keras?), no weights of PyTorch"),
    (b"\x93NUMPY", "one array of numpy (.npy), no weights of PyTorch"),
    (b"GGUF", "a GGUF file, no weights of PyTorch"),
    (b"\x1f\x8b", f"a packed file (gzip): {_UNPACK}"),
    (b"BZh", f"a packed file (bzip2): {_UNPACK}"),
    (b"\xfd7zXZ", f"a packed file (xz): {_UNPACK}"),
    (b"7z\xbc\xaf", f"a packed file (7z): {_UNPACK}"),
)


@dataclass(frozen=True)
class WeightSet:
    """Tensors that stand together in a file.

    Attributes:
        where: key path inside the file; empty at its top.
        tensors: by name, in the order of the file.
    """

    where: str
    tensors: dict[str, Tensor]


@dataclass(frozen=True)
class Content:
    """What a file of weights holds.

    Attributes:
        sets: at least one.
        metadata: text header of a .safetensors file.
        note: what else is in it and may be what was meant; empty, or a sentence.
    """

    sets: tuple[WeightSet, ...]
    metadata: dict[str, str]
    note: str = ""


def read(path: Path) -> Content:
    """Read a file of weights: safetensors, or what `torch.save` wrote, however the weights are wrapped in it.

    Raises:
        UserError: the file is missing, damaged, of another kind, or holds no weights; says which, and the cure.
    """
    try:
        check_is_file(path)
        with path.open("rb") as file:
            head = file.read(512)
        _check_kind(path, head)
        if head.startswith(b"PK"):
            _check_zip(path)
        elif _is_safetensors(head) or (path.suffix == ".safetensors" and head[:1] != b"\x80"):
            with safe_open(str(path), framework="pt") as tensors:
                found = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
                return Content((WeightSet("", found),), tensors.metadata() or {})
        elif not head.startswith(LEGACY):
            raise UserError(_no_torch_file(path, head))
        return _content(path, *load(path))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except UserError:
        raise
    except Exception as error:  # readers of damaged files fall over anything
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        if isinstance(error, OSError) and error.strerror:
            raise UserError(f"{path}: {error.strerror}") from error
        raise UserError(f"{path}: damaged or cut off; download or copy it again ({reason})") from error


# --- what it is


def check_is_file(path: Path) -> None:
    """Raise for a folder, for parts of a set, and for what is no plain file and might never end.

    Raises:
        UserError: it is one of these.
        OSError: it cannot be looked at.
    """
    if path.is_dir():
        inside = sorted(file.name for file in path.iterdir() if file.suffix in SUFFIXES)
        if (path / ".metadata").exists() and any(path.glob("*.distcp")):
            cure = f"from torch.distributed.checkpoint.format_utils import *; dcp_to_torch_save('{path}', 'weights.pt')"
            raise UserError(f"{path}: a folder of torch.distributed.checkpoint; turn it into a file: `{cure}`")
        if any(_PART.search(name) for name in inside):
            raise UserError(f"{path}: a folder with weights in several files; {_put_together(path)}")
        raise UserError(f"{path}: a folder; name the file of weights in it ({', '.join(inside[:5]) or 'none'})")
    if _PART.search(path.name) and path.exists():
        raise UserError(f"{path}: one of several files of a set of weights; {_put_together(path.parent)}")
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: a pipe or a device; give a plain file")


def _put_together(folder: Path) -> str:
    tensors = any(folder.glob("*.safetensors"))
    ending = "safetensors" if tensors else "bin"
    reads = "safetensors.torch.load_file(f)" if tensors else "torch.load(f, 'cpu', weights_only=True)"
    imports = "glob, safetensors.torch, torch" if tensors else "glob, torch"
    state = f"{{k: v for f in glob.glob('{folder}/*-of-*.{ending}') for k, v in {reads}.items()}}"
    return f"put them together: `{line(state, imports)}`"


def _check_kind(path: Path, head: bytes) -> None:
    """Raise for what is no file of weights, as far as its beginning tells."""
    if not head:
        raise UserError(f"{path}: an empty file (0 bytes)")
    for magic, sentence in _KINDS:
        if head.startswith(magic):
            raise UserError(f"{path}: {sentence}")
    if head[257:262] == b"ustar":
        raise UserError(f"{path}: a packed file (tar): {_UNPACK}")
    if path.suffix == ".onnx":
        raise UserError(f"{path}: an ONNX program, no weights of PyTorch; give the weights that it was made from")
    head = head.removeprefix(b"\xef\xbb\xbf")  # a mark that some programs put before texts
    if head.lstrip()[:1] == b"<":
        raise UserError(
            f"{path}: a web page (HTML) and no weights: the download asked for a login, or ended at a notice"
        )
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head):
        start = head.decode("ascii").strip().split("\n")[0][:40]
        raise UserError(f"{path}: a text file and no weights; it begins with '{start}'")


def _is_safetensors(head: bytes) -> bool:
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 27


def _check_zip(path: Path) -> None:
    """Raise for an archive that torch.save did not write."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        # torch.load does not look at the checksums, and takes turned bits for numbers; without them they are all 0.
        if any(entry.CRC for entry in archive.infolist()) and (broken := archive.testzip()) is not None:
            raise UserError(f"{path}: damaged ('{broken}' in it does not have its checksum); download or copy it again")
    inside = {name.partition("/")[2] for name in names}
    if any("exported_program" in name or name.endswith("archive_format") for name in names):
        cure = line(f"torch.export.load('{path}').state_dict")
        raise UserError(f"{path}: a program of torch.export and no state dict; take its weights out: `{cure}`")
    if "constants.pkl" in inside or any(name.startswith("code/") for name in inside):
        cure = line(f"torch.jit.load('{path}', 'cpu').state_dict()")
        raise UserError(f"{path}: a TorchScript program and no state dict; take its weights out: `{cure}`")
    if names and all(name.endswith(".npy") for name in names):
        cure = line(f"{{k: torch.from_numpy(v) for k, v in numpy.load('{path}').items()}}", "numpy, torch")
        raise UserError(f"{path}: arrays of numpy (.npz) and no state dict; turn them into one: `{cure}`")
    if "data.pkl" not in inside:
        raise UserError(f"{path}: a zip archive that torch.save did not write: {_UNPACK}")


def _no_torch_file(path: Path, head: bytes) -> str:
    if head[:1] != b"\x80":
        return f"{path}: damaged, or no file of weights: neither safetensors nor what torch.save writes"
    cure = line(f"pickle.load(open('{path}', 'rb'))", "pickle, torch")
    return f"{path}: a pickle that torch.save did not write; if you trust it: `{cure}`"


# --- what is in it


def _content(path: Path, opened: Any, foreign: set[str]) -> Content:
    found = tuple(_sets(opened))
    whole = next(_whole(opened), None) if any(map(is_module, foreign)) else None
    note = _whole_note(path, *whole) if whole else ""
    if not found:
        raise UserError(f"{path}: {note or _without_weights(opened, foreign)}")
    strange = sorted(name for name in foreign if not HARMLESS.match(name))
    if strange and not note:
        more = f" and {len(strange) - 3} more" if len(strange) > 3 else ""
        log.warning("%s: the weights are read, objects of %s%s beside them are not", path, ", ".join(strange[:3]), more)
    return Content(found, {}, note)


def _sets(value: Any, where: str = "", depth: int = 0) -> Iterator[WeightSet]:
    """All dicts of tensors in an object, those of optimisers left out, outer ones first."""
    if isinstance(value, list | tuple) and len(value) <= 8:
        parts = {f"[{number}]": part for number, part in enumerate(value)}
    elif isinstance(value, Mapping) and "param_groups" not in value:
        parts = {f".{key}": part for key, part in value.items() if isinstance(key, str)}
        tensors = {key[1:]: part.detach() for key, part in parts.items() if isinstance(part, Tensor)}
        if tensors:
            yield WeightSet(where, tensors)
    else:
        return
    for key, part in parts.items():
        if depth < DEPTH and isinstance(part, Mapping | list | tuple):
            yield from _sets(part, f"{where}{key}".removeprefix("."), depth + 1)


def _whole(value: Any, where: str = "", depth: int = 0) -> Iterator[tuple[str, str]]:
    """Where whole networks stand in an object, with their classes."""
    if isinstance(value, StandIn):
        if not HARMLESS.match(value.name) or is_module(value.name):
            yield where, value.name
    elif isinstance(value, Mapping) and depth < DEPTH:
        for key, part in value.items():
            yield from _whole(part, f"{where}[{key!r}]", depth + 1)


def _whole_note(path: Path, where: str, name: str) -> str:
    cure = line(f"{unsafe(path)}{where}.state_dict()")
    module = name.rpartition(".")[0]
    home = "in the program that defines it" if module == "__main__" else f"where {module} can be imported"
    return (
        f"holds a whole network of the class {name}{f' under {where}' if where else ''} and not its state dict; "
        f"if you trust it, {home}: `{cure}`"
    )


def _without_weights(value: Any, foreign: set[str]) -> str:
    cure = "save `model.state_dict()` with torch.save or as safetensors"
    strange = f" (objects of {', '.join(sorted(foreign)[:3])} were not read)" if foreign else ""
    if isinstance(value, Tensor):
        return f"one tensor {tuple(value.shape)}, not a plain state dict; {cure}"
    if not isinstance(value, Mapping):
        return f"not a plain state dict but {type(value).__name__}{strange}; {cure}"
    optimiser = any(isinstance(part, Mapping) and "param_groups" in part for part in (value, *value.values()))
    keys = ", ".join(str(key) for key in list(value)[:8]) or "none"
    if any(name.startswith("numpy.") and name.endswith("._reconstruct") for name in foreign):
        strange = ", but arrays of numpy"
        cure = "turn them into tensors before you save them: `{k: torch.from_numpy(v) for k, v in weights.items()}`"
    kind = "the state of an optimiser and no weights" if optimiser else "no weights"
    return f"holds {kind}: its keys are {keys}{strange}; {cure}"

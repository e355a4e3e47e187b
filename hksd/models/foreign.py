"""Weights under foreign names: prefixes of wrappers, several sets in one file, and networks of other collections.

A set fits when, behind a common prefix (``module.``, ``model.``, ``module.student.``, ...), its names are those of the
network. Where names are others altogether, as in the files of RepDistiller and mdistiller, one of our families takes
weights by the order of its layers: every tensor must have the kind and the shape of ours at its place.
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hksd.models.checkpoints import WeightSet

COUNTER = "num_batches_tracked"  # of batch norms; torch before 0.4.1 had none, and nothing reads it at a fixed momentum
# Parts of names that wrappers put anywhere inside: DataParallel, torch.compile, FSDP, activation checkpoints.
WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
# What may stand beside a network at its own level: averages, losses, metrics, heads that help its training.
BESIDE = re.compile(
    r"n_averaged|epoch|(global_)?step|iteration|best_.*|criterion|(.*_)?loss(es)?(_.*)?|loss_fn|(.*_)?metrics?|(.*_)?acc(uracy)?|ema.*|.*_ema|"
    r"(?i:(.*_)?aux(iliary)?(_?\d+|_?logits|_?head|_?classifier|_?fc)*|head_dist|(.*_)?(projector|projection|predictor)(_.*)?)"
)
SECOND = re.compile(r"(^|[._])(ema|swa|average\w*|teacher|shadow)([._]|$)")  # a set that is taken if no other one fits
_NUMBERED = re.compile(r"(?:conv|bn|norm)(\d+)$")
_SHORTCUT = re.compile(r"(?i)shortcut|downsample|skip")


class Names:
    """What a network wants of a set.

    Attributes:
        tensors: its parameters and buffers by name, a shared one under every name.
        groups: names of each, those of a shared one together; in the network's order.
    """

    def __init__(self, network: nn.Module):
        state = network.state_dict(keep_vars=True)
        self.tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
        shared: dict[int, list[str]] = {}
        for name, value in self.tensors.items():
            shared.setdefault(id(value), []).append(name)
        self.groups = list(shared.values())

    def unwrapped(self) -> tuple[Names, dict[str, str]]:
        """The same without what wrappers put into names, or before all; with the network's names.

        As it is where names clash.
        """
        short = {name: _without_wrappers(name) for name in self.tensors}
        while len({name.partition(".")[0] for name in short.values()}) == 1 and all("." in n for n in short.values()):
            if all("." not in name.partition(".")[2] for name in short.values()):
                break  # the name of a layer
            short = {real: name.partition(".")[2] for real, name in short.items()}
        names = {name: real for real, name in short.items()}
        if len(names) < len(self.tensors):
            return self, {name: name for name in self.tensors}
        other = copy.copy(self)
        other.tensors = {name: self.tensors[real] for name, real in names.items()}
        other.groups = [[short[name] for name in group] for group in self.groups]
        return other, names

    def wanted(self) -> list[list[str]]:
        """Names of what a set must hold: all but the counters of batch norms."""
        return [names for names in self.groups if not _counts(names[0])]


@dataclass(frozen=True)
class Fit:
    """A set that fits a network.

    Attributes:
        where: key path and prefix in the file; empty at its top.
        tensors: under the network's names.
        left_out: where other tensors of the set stand, with their number.
        pairs: first and last name of the file with ours, where it fits by order; else empty.
    """

    where: str
    tensors: dict[str, Tensor]
    left_out: Mapping[str, int]
    pairs: tuple[tuple[str, str], ...] = ()


def fits(sets: Sequence[WeightSet], own: Names, *, by_order: bool) -> list[Fit]:
    """All sets that fit, best first: those of an average or of another network's teacher come last.

    Args:
        sets: of a file.
        own: of the network.
        by_order: take sets whose names are others, if the order of kinds and shapes is the network's.
    """
    found = [fit for group in sets for fit in _fits_in(group, own, by_order)]
    return sorted(found, key=lambda fit: bool(SECOND.search(fit.where)))


def closest(sets: Sequence[WeightSet], own: Names) -> tuple[str, dict[str, Tensor]]:
    """The set that has most of the network's names behind one prefix: where it is, and what it holds.

    Args:
        sets: of a file; at least one.
        own: of the network.
    """
    best = (-1, "", sets[0].tensors)
    for group in sets:
        for tensors in (group.tensors, _unwrapped(group.tensors)):
            votes: Counter[str] = Counter({"": 0})
            for name in tensors:
                parts = name.split(".")
                for start in range(len(parts)):
                    if ".".join(parts[start:]) in own.tensors:
                        votes[".".join((*parts[:start], ""))] += 1
            prefix, count = max(votes.items(), key=lambda vote: (vote[1], -len(vote[0])))
            if count > best[0]:
                inside = {name[len(prefix) :]: part for name, part in tensors.items() if name.startswith(prefix)}
                best = (count, _place(group, prefix), inside)
    return best[1:]


def _fits_in(group: WeightSet, own: Names, by_order: bool) -> list[Fit]:
    for tensors in (group.tensors, _unwrapped(group.tensors)):
        found = []
        for prefix, inside in _behind_prefixes(tensors, len(own.wanted())):
            pairs = _in_order(inside, own) if by_order else _by_name(inside, own)
            if pairs is None:
                continue
            left = [name for name in tensors if not (name.startswith(prefix) and name[len(prefix) :] in pairs)]
            beside = Counter(
                _beside(group, prefix, name) for name in left if name != "n_averaged" and not _counts(name)
            )
            taken = {ours: inside[theirs] for theirs, ours in pairs.items()}
            ends = (next(iter(pairs.items())), list(pairs.items())[-1]) if by_order else ()
            found.append(Fit(_place(group, prefix), taken, beside, ends))
        if found:
            return found
    return []


def _counts(name: str) -> bool:
    return name.endswith((COUNTER, "total_ops", "total_params"))  # the latter: what thop leaves in networks


def _beside(group: WeightSet, prefix: str, name: str) -> str:
    """Where a tensor stands that is not behind a prefix: the first part of its name that differs, and those before."""
    parts, common = name.split("."), prefix.split(".")
    same = next((i for i, part in enumerate(common) if part != parts[i]), 0) if len(parts) >= len(common) else 0
    return _place(group, ".".join(parts[: same + 1]))


def _place(group: WeightSet, prefix: str) -> str:
    return ".".join(filter(None, (group.where, prefix.rstrip("."))))


def _unwrapped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the parts of names that wrappers put, wherever they stand; as it is where names would clash."""
    bare = {_without_wrappers(name): part for name, part in tensors.items()}
    return bare if len(bare) == len(tensors) else tensors


def _without_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _behind_prefixes(tensors: dict[str, Tensor], least: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """What stands behind every prefix that at least `least` names share, the shortest first."""
    counts: Counter[str] = Counter({"": len(tensors)})
    for name in tensors:
        parts = name.split(".")
        counts.update(".".join(parts[:end]) + "." for end in range(1, len(parts)))
    for prefix in sorted((prefix for prefix, count in counts.items() if count >= least), key=len):
        yield prefix, {name[len(prefix) :]: part for name, part in tensors.items() if name.startswith(prefix)}


def _by_name(inside: dict[str, Tensor], own: Names) -> dict[str, str] | None:
    return None if faults(inside, own) else {name: name for name in inside if name in own.tensors}


def faults(inside: Mapping[str, Tensor], own: Names) -> list[str]:
    """Everything that keeps a set of tensors from being the network's, each in words."""
    tops = {name.partition(".")[0] for name in own.tensors}
    extra = [name for name in inside if name not in own.tensors and not _counts(name)]
    told = [f"missing {names[0]}" for names in own.wanted() if not any(name in inside for name in names)]
    for name in extra:
        top = name.partition(".")[0]
        if top in tops or not BESIDE.fullmatch(top):
            told.append(f"unexpected {name}")
    for name, wanted in own.tensors.items():
        if name in inside and (fault := _fault(inside[name], wanted)):
            told.append(f"{name} {fault}")
    for names in own.groups:
        given = [inside[name] for name in names if name in inside]
        if any(part.shape == given[0].shape and not torch.equal(part, given[0]) for part in given[1:]):
            told.append(f"{' and '.join(names)} are one tensor in the network and differ here")
    return told


def _fault(given: Tensor, wanted: Tensor) -> str:
    if given.shape != wanted.shape:
        return f"is {tuple(given.shape)}, the network has {tuple(wanted.shape)}"
    if given.is_meta:
        return "has no numbers (it was saved from the meta device)"
    if wanted.is_floating_point() and (given.itemsize < 2 or not given.is_floating_point()) and not given.is_complex():
        return f"is {given.dtype}, whose numbers need a scale to be those of {wanted.dtype}"
    if given.is_quantized or given.layout != torch.strided or given.is_complex() != wanted.is_complex():
        return f"is {given.dtype}, {given.layout}, and cannot be turned into {wanted.dtype}"
    return ""


def _in_order(inside: dict[str, Tensor], own: Names) -> dict[str, str] | None:
    """The network's name for every tensor of a set, one by one in their orders; None unless all agree."""
    theirs, ours = [name for name in inside if not _counts(name)], [names[0] for names in own.wanted()]
    if len(theirs) != len(ours) or any(len(names) > 1 for names in own.groups):
        return None
    pairs = dict(zip(theirs, ours, strict=True))
    if any(_fault(inside[name], own.tensors[here]) or not _alike(name, here) for name, here in pairs.items()):
        return None
    # Tensors of one layer there must be of one layer here.
    layers = {(name.rpartition(".")[0], here.rpartition(".")[0]) for name, here in pairs.items()}
    return pairs if len(layers) == len({a for a, _ in layers}) == len({b for _, b in layers}) else None


def _alike(theirs: str, ours: str) -> bool:
    """Whether names tell of the same kind of tensor, number in its block, and branch, as far as they tell."""
    (layer, _, kind), (layer_here, _, kind_here) = theirs.rpartition("."), ours.rpartition(".")
    number, number_here = _NUMBERED.search(layer), _NUMBERED.search(layer_here)
    return (
        kind == kind_here
        and (number is None or number_here is None or number[1] == number_here[1])
        and (_SHORTCUT.search(layer) is None or _SHORTCUT.search(layer_here) is not None)
    )

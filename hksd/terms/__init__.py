"""Loss terms by name. A new term is one file and one line here; see docs/extend.md."""

from __future__ import annotations

from dataclasses import dataclass

from hksd.terms.adversarial import AdversarialConfig
from hksd.terms.base import Term, TermConfig
from hksd.terms.ce import CrossEntropyConfig
from hksd.terms.kd import DistillationConfig
from hksd.terms.logits import LogitsConfig
from hksd.terms.squeeze import SqueezeConfig


@dataclass(frozen=True)
class TermEntry:
    """A registered term: its configuration class, what it is, and where it comes from."""

    config: type[TermConfig]
    summary: str
    source: str


TERMS: dict[str, TermEntry] = {
    "ce": TermEntry(CrossEntropyConfig, "cross-entropy with the labels", "standard"),
    "kd": TermEntry(DistillationConfig, "KL of softened logits", "Hinton et al. 2015, arXiv 1503.02531"),
    "logits": TermEntry(LogitsConfig, "squared distance of logits", "KSANC L_b (CONFIRMED-SHOT); Ba and Caruana 2014"),
    "squeeze": TermEntry(
        SqueezeConfig,
        "squeezed attention vectors, hierarchy depth 1-3",
        "KSANC, arXiv 1904.05100 (level 1 CONFIRMED-SHOT); HKSANC, AAAI 2020 (hierarchy RECONSTRUCTED)",
    ),
    "adversarial": TermEntry(
        AdversarialConfig,
        "discriminator on logits with a category head",
        "KSANC, arXiv 1904.05100 (form CONFIRMED-SHOT, widths and weights RECONSTRUCTED)",
    ),
}

__all__ = ["TERMS", "Term", "TermConfig", "TermEntry"]

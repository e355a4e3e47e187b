"""Loss terms by name. A new term is one file and one line here; see docs/extend.md."""

from __future__ import annotations

from dataclasses import dataclass

from hksd.terms.adversarial import AdversarialConfig
from hksd.terms.base import Term, TermConfig
from hksd.terms.ce import CrossEntropyConfig
from hksd.terms.crd import ContrastiveConfig
from hksd.terms.dense_flow import DenseFlowConfig
from hksd.terms.kd import DistillationConfig
from hksd.terms.kdgan import KdganConfig
from hksd.terms.knowledge_representing import KnowledgeRepresentingConfig
from hksd.terms.logits import LogitsConfig
from hksd.terms.review import ReviewConfig
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
        "discriminator on logits, embeddings or squeezed vectors, with a category head",
        "KSANC, arXiv 1904.05100 (form CONFIRMED-SHOT, widths and weights RECONSTRUCTED); ANC, arXiv 1803.10750",
    ),
    "review": TermEntry(
        ReviewConfig,
        "Knowledge Review: stages fused from the top down, hierarchical context loss",
        "Chen et al. 2021, arXiv 2104.09044; mdistiller (CONFIRMED)",
    ),
    "crd": TermEntry(
        ContrastiveConfig,
        "contrastive distillation of embeddings with two memories",
        "Tian et al. 2020, arXiv 1910.10699; RepDistiller (CONFIRMED)",
    ),
    "knowledge_representing": TermEntry(
        KnowledgeRepresentingConfig,
        "KR: aggregates of neighbouring teacher layers, imitated up to a learned threshold",
        "arXiv 1911.05329 (words and hyperparameters CONFIRMED, equations RECONSTRUCTED)",
    ),
    "dense_flow": TermEntry(
        DenseFlowConfig,
        "overlapping flows between stages, by distance and by a game",
        "Yeo, Kim and Bae 2021, Appl. Sci. 11(8) 3720 (abstract CONFIRMED, losses RECONSTRUCTED)",
    ),
    "kdgan": TermEntry(
        KdganConfig,
        "game of student, a trained copy of the teacher and a discriminator of (image, label) pairs",
        "Wang et al. 2018; xiaojiew1/KDGAN (structure SECONDARY, value function RECONSTRUCTED)",
    ),
}

__all__ = ["TERMS", "Term", "TermConfig", "TermEntry"]

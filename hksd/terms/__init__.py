"""Loss terms by name. A new term is one file and one line here; see docs/extend.md."""

from __future__ import annotations

from dataclasses import dataclass

from hksd.terms.adversarial import AdversarialConfig
from hksd.terms.attention_transfer import AttentionTransferConfig
from hksd.terms.base import Term, TermConfig
from hksd.terms.ce import CrossEntropyConfig
from hksd.terms.correlation import CorrelationConfig
from hksd.terms.crd import ContrastiveConfig
from hksd.terms.dense_flow import DenseFlowConfig
from hksd.terms.dist import DistConfig
from hksd.terms.dkd import DecoupledConfig
from hksd.terms.fitnet import FitNetConfig
from hksd.terms.fsp import FspConfig
from hksd.terms.kd import DistillationConfig
from hksd.terms.kdgan import KdganConfig
from hksd.terms.knowledge_representing import KnowledgeRepresentingConfig
from hksd.terms.logits import LogitsConfig
from hksd.terms.mlkd import MultiLevelConfig
from hksd.terms.nst import SelectivityConfig
from hksd.terms.pkt import ProbabilisticConfig
from hksd.terms.review import ReviewConfig
from hksd.terms.rkd import RelationalConfig
from hksd.terms.similarity import SimilarityConfig
from hksd.terms.squeeze import SqueezeConfig
from hksd.terms.vid import VariationalConfig


@dataclass(frozen=True)
class TermEntry:
    """A registered term: its configuration class, what it is, and where it comes from."""

    config: type[TermConfig]
    summary: str
    source: str


TERMS: dict[str, TermEntry] = {
    "ce": TermEntry(CrossEntropyConfig, "cross-entropy with the labels", "standard"),
    "kd": TermEntry(DistillationConfig, "KL of softened logits", "Hinton et al. 2015, arXiv 1503.02531"),
    "dkd": TermEntry(
        DecoupledConfig, "KL of target class and other classes apart", "Zhao et al. 2022, arXiv 2203.08679"
    ),
    "dist": TermEntry(DistConfig, "correlations of probabilities", "Huang et al. 2022, arXiv 2205.10536"),
    "mlkd": TermEntry(
        MultiLevelConfig, "KL at several temperatures, similarities of images and classes", "Jin et al., CVPR 2023"
    ),
    "logits": TermEntry(LogitsConfig, "squared distance of logits", "KSANC L_b (CONFIRMED-SHOT); Ba and Caruana 2014"),
    "squeeze": TermEntry(
        SqueezeConfig,
        "squeezed attention vectors, hierarchy depth 1-3",
        "KSANC, arXiv 1904.05100 (level 1 CONFIRMED-SHOT); HKSANC, AAAI 2020 (hierarchy RECONSTRUCTED)",
    ),
    "attention_transfer": TermEntry(
        AttentionTransferConfig, "energy maps of the stages", "Zagoruyko and Komodakis 2017, arXiv 1612.03928"
    ),
    "fitnet": TermEntry(FitNetConfig, "squared distance of a middle stage", "Romero et al. 2015, arXiv 1412.6550"),
    "fsp": TermEntry(FspConfig, "Gram matrices between consecutive stages", "Yim et al., CVPR 2017"),
    "nst": TermEntry(
        SelectivityConfig, "mean discrepancy of the channels of a stage", "Huang and Wang 2017, arXiv 1707.01219"
    ),
    "similarity": TermEntry(
        SimilarityConfig, "similarities of images at the last stage", "Tung and Mori 2019, arXiv 1907.09682"
    ),
    "correlation": TermEntry(
        CorrelationConfig, "distances of neighbouring images", "Peng et al. 2019, arXiv 1904.01802, RepDistiller's form"
    ),
    "pkt": TermEntry(
        ProbabilisticConfig, "neighbourhoods of images as probabilities", "Passalis and Tefas 2018, arXiv 1803.10837"
    ),
    "rkd": TermEntry(RelationalConfig, "distances and angles among images", "Park et al. 2019, arXiv 1904.05068"),
    "vid": TermEntry(VariationalConfig, "likelihood of the teacher's stages", "Ahn et al. 2019, arXiv 1904.05835"),
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
    "adversarial": TermEntry(
        AdversarialConfig,
        "discriminator on logits, embeddings or squeezed vectors, with a category head",
        "KSANC, arXiv 1904.05100 (form CONFIRMED-SHOT, widths and weights RECONSTRUCTED); ANC, arXiv 1803.10750",
    ),
    "kdgan": TermEntry(
        KdganConfig,
        "game of student, a trained copy of the teacher and a discriminator of (image, label) pairs",
        "Wang et al. 2018; xiaojiew1/KDGAN (structure SECONDARY, value function RECONSTRUCTED)",
    ),
}

__all__ = ["TERMS", "Term", "TermConfig", "TermEntry"]

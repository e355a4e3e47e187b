"""Values of the published code of each method, in double precision, on networks of equal and of unlike size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from hksd.models.taps import Out, TapShapes
from hksd.terms import TERMS
from hksd.terms.attention_transfer import attention_transfer_loss
from hksd.terms.correlation import correlation_loss
from hksd.terms.dist import dist_loss
from hksd.terms.dkd import dkd_loss
from hksd.terms.fitnet import fitnet_loss
from hksd.terms.fsp import fsp_loss
from hksd.terms.kd import kd_loss, standardize
from hksd.terms.nst import nst_loss
from hksd.terms.pkt import pkt_loss
from hksd.terms.rkd import rkd_loss
from hksd.terms.similarity import similarity_loss

Data = Mapping[str, Tensor]
SIZES = ("same_size", "other_size")


def logits(data: Data) -> tuple[Tensor, Tensor]:
    return data["logits_s"], data["logits_t"]


def embeddings(data: Data) -> tuple[Tensor, Tensor]:
    return data["emb_s"], data["emb_t"]


def stages(data: Data) -> list[tuple[Tensor, Tensor]]:
    return [(data[f"feat_s{i}"], data[f"feat_t{i}"]) for i in range(3)]


def pairs(data: Data) -> list[Tensor]:
    maps = stages(data)
    return [fsp_loss(maps[i][0], maps[i + 1][0], maps[i][1], maps[i + 1][1]) for i in range(2)]


LOSSES: dict[str, Callable[[Data], Tensor | list[Tensor]]] = {
    "kd_T1": lambda d: kd_loss(*logits(d), 1),
    "kd_T4": lambda d: kd_loss(*logits(d), 4),
    "kd_logit_standardised_T2": lambda d: kd_loss(*map(standardize, logits(d)), 2),
    "attention_transfer_p2_per_stage": lambda d: [attention_transfer_loss(s, t) for s, t in stages(d)],
    "fitnet_mse_last_stage": lambda d: fitnet_loss(*stages(d)[-1]),
    "nst_poly_per_stage": lambda d: [nst_loss(s, t) for s, t in stages(d)],
    "fsp_per_pair": pairs,
    "similarity_preserving_last_stage": lambda d: [similarity_loss(*stages(d)[-1])],
    "pkt": lambda d: pkt_loss(*embeddings(d)),
    "rkd_wd25_wa50": lambda d: rkd_loss(*embeddings(d), distance=25, angle=50),
    "correlation_congruence": lambda d: correlation_loss(*embeddings(d)),
    "dkd_a1_b8_T4": lambda d: dkd_loss(*logits(d), d["target"], alpha=1, beta=8, temperature=4),
    "dkd_a1_b2_T4": lambda d: dkd_loss(*logits(d), d["target"], alpha=1, beta=2, temperature=4),
    "dist_beta1_gamma1_T1": lambda d: dist_loss(*logits(d), beta=1, gamma=1, temperature=1),
    "dist_beta1_gamma1_T4_times_T2": lambda d: dist_loss(*logits(d), beta=1, gamma=1, temperature=4),
}

# Terms with the knobs that make them the published form without anything learned, and what they should give.
TERM_FORMS: list[tuple[str, dict[str, object], str]] = [
    ("kd", {"temperature": 2.0, "standardize": True}, "kd_logit_standardised_T2"),
    ("attention_transfer", {}, "attention_transfer_p2_per_stage"),
    ("fitnet", {"stage": 1, "adaptor": "needed"}, "fitnet_mse_last_stage"),
    ("nst", {}, "nst_poly_per_stage"),
    ("fsp", {}, "fsp_per_pair"),
    ("similarity", {}, "similarity_preserving_last_stage"),
    ("pkt", {}, "pkt"),
    ("rkd", {}, "rkd_wd25_wa50"),
    ("correlation", {"dims": None}, "correlation_congruence"),
    ("dkd", {"beta": 8.0}, "dkd_a1_b8_T4"),
    ("dist", {}, "dist_beta1_gamma1_T4_times_T2"),
]


@pytest.fixture(scope="module", params=SIZES)
def data(request: pytest.FixtureRequest, vectors: Path) -> Data:
    with np.load(vectors / f"{request.param}.npz") as file:
        return {name: torch.from_numpy(np.asarray(file[name])) for name in file}


def expected(data: Data, name: str) -> Tensor:
    if f"expected/{name}" not in data:
        pytest.skip("not among the values of this size")
    return data[f"expected/{name}"]


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_is_what_the_published_code_computes(name: str, data: Data) -> None:
    published, value = expected(data, name), LOSSES[name](data)
    result = torch.stack(value) if isinstance(value, list) else value
    assert result.dtype == torch.float64
    torch.testing.assert_close(result, published, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("term", "knobs", "name"), TERM_FORMS, ids=[form[0] for form in TERM_FORMS])
def test_the_term_is_the_sum_of_the_published_values(
    term: str, knobs: dict[str, object], name: str, data: Data
) -> None:
    published, outs, shapes = expected(data, name).sum(), [], []
    for side in "st":
        maps = [data[f"feat_{side}{i}"] for i in range(3)]
        outs.append(Out(data[f"logits_{side}"], data[f"emb_{side}"], maps))
        shapes.append(TapShapes(data["logits_s"].shape[1], 24, tuple(m.shape[1] for m in maps), ()))
    value = TERMS[term].config(**knobs).build(*shapes)(*outs, data["target"])
    torch.testing.assert_close(value, published, rtol=1e-6, atol=0)


def test_no_published_value_is_left_out(data: Data) -> None:
    names = {name.removeprefix("expected/") for name in data if name.startswith("expected/")}
    assert names - {"reviewkd_hcl_sum_over_stages"} <= set(LOSSES)  # that of another term has its own test

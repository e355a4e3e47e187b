"""All terms in one run: they combine freely, on unlike networks, and resume together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hksd.config.run import RunConfig
from hksd.data import DataSet
from hksd.fit import fit
from hksd.terms import TERMS

Make = Callable[..., RunConfig]
TERMS_OF_A_RUN: dict[str, Any] = {
    **{name: {"weight": 1e-3} for name in TERMS},
    "ce": {},
    "squeeze": {"weight": 1e-3, "depth": 3, "levels": "all"},
    "adversarial": {"weight": 1e-3, "input": "descriptor", "hidden": 8, "warmup_epochs": 0},
    "kdgan": {"weight": 1e-3, "hidden": 8, "delay_epochs": 1},
    "review": {"weight": 1e-3, "channels": 8, "warmup_epochs": 1},
    "crd": {"weight": 1e-3, "negatives": 32, "dims": 8, "decay": "cosine"},
}


def test_all_terms_train_in_one_run_and_resume_bit_identically(
    make_config: Make, digits: DataSet, tmp_path: Path, cache_dir: Path
) -> None:
    config = make_config(
        terms=TERMS_OF_A_RUN,
        teacher={"model": "wrn_16_2", "width": 0.25, "epochs": 1},
        student={"model": "resnet8", "width": 0.25},
        train={"epochs": 2, "batch_size": 80, "lr": 0.01, "clip_norm": 1.0},
    )
    whole = fit(config, data=digits, cache_dir=cache_dir)
    assert set(whole.history[-1].terms) == set(TERMS)
    assert "kdgan" not in whole.history[0].terms
    fit(config, data=digits, cache_dir=cache_dir, out_dir=tmp_path, on_epoch=lambda report: "stop")
    resumed = fit(config, data=digits, cache_dir=cache_dir, out_dir=tmp_path)
    assert resumed.resumed_at == 1
    for (name, one), two in zip(whole.student.state_dict().items(), resumed.student.state_dict().values(), strict=True):
        assert torch.equal(one, two), name


def test_terms_and_modes_compose(make_config: Make, digits: DataSet, cache_dir: Path) -> None:
    config = make_config(
        terms={"ce": {}, "kd": {}, "attention_transfer": {}, "crd": {"negatives": 32, "dims": 8}},
        robust={"steps": 1},
        prune={"strength": 1e-3, "target_sparsity": 0.3, "debias_fraction": 0.5},
    )
    report = fit(config, data=digits, cache_dir=cache_dir).history[-1]
    assert 0.299 < report.diagnostics["prune/sparsity"] < 0.5
    assert 0 <= report.diagnostics["robust/val_accuracy"] <= 1
    generated = make_config(
        terms={"kd": {}, "nst": {}, "adversarial": {"category_weight": 0, "hidden": 8, "warmup_epochs": 0}},
        data_free={"method": "two_step", "steps_per_epoch": 4, "channels": 8, "latent": 16},
        robust={"steps": 1, "attack": "total"},
        prune={"granularity": "filter", "strength": 1e-3},
    )
    assert fit(generated, data=digits, cache_dir=cache_dir).history[-1].train_loss > 0

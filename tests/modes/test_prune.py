"""Pruning by proximal steps, with a debias phase."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hksd.config.run import RunConfig
from hksd.data import DataSet
from hksd.errors import ConfigError
from hksd.fit import fit
from hksd.modes import Prune, PruneConfig
from hksd.modes.prune import block_soft_threshold, soft_threshold
from hksd.run.outcome import Result

Make = Callable[..., RunConfig]


def zeros(result: Result) -> list[torch.Tensor]:
    kinds = (nn.Conv2d, nn.Linear)
    return [module.weight == 0 for module in result.student.modules() if isinstance(module, kinds)]


def test_the_soft_threshold_is_the_proximal_map_of_the_absolute_value() -> None:
    weight = torch.tensor([-2.0, -0.5, 0.0, 0.3, 1.0])
    assert torch.allclose(soft_threshold(weight, 0.4), torch.tensor([-1.6, -0.1, 0.0, 0.0, 0.6]))
    # argmin over x of (x - w)^2 / 2 + k |x|, by search
    grid = torch.linspace(-3, 3, 60_001, dtype=torch.float64)
    for w in (-1.7, -0.2, 0.35, 2.2):
        best = grid[((grid - w).square() / 2 + 0.4 * grid.abs()).argmin()]
        assert soft_threshold(torch.tensor(w, dtype=torch.float64), 0.4).item() == pytest.approx(best.item(), abs=1e-4)


def test_the_block_threshold_shortens_filters_and_keeps_their_direction() -> None:
    weight = torch.stack([torch.full((2, 2), 1.0), torch.full((2, 2), 0.1)])[:, None]
    shrunk = block_soft_threshold(weight, 0.25)  # times sqrt(4): 0.5 off the norms 2 and 0.2
    assert torch.allclose(shrunk[0], weight[0] * 0.75)
    assert (shrunk[1] == 0).all()
    assert block_soft_threshold(torch.zeros(2, 1, 3, 3), 0.1).isfinite().all()


@pytest.mark.parametrize(("granularity", "target"), [("weight", 0.7), ("filter", 0.4)])
def test_the_target_is_reached_when_the_debias_phase_begins_and_the_zeros_stay(
    granularity: str, target: float, make_config: Make, digits: DataSet
) -> None:
    prune = {"granularity": granularity, "strength": 1e-7, "target_sparsity": target, "debias_fraction": 0.5}
    result = fit(make_config(teacher=None, train={"epochs": 4}, prune=prune), data=digits)
    told = [report.diagnostics["prune/sparsity"] for report in result.history]
    assert max(told[:2]) < 0.05
    assert told[2] == told[3]
    if granularity == "weight":
        assert told[3] == pytest.approx(target, abs=1e-3)
        flat = torch.cat([mask.flatten() for mask in zeros(result)])
    else:
        convs = [m.weight for m in result.student.modules() if isinstance(m, nn.Conv2d)]
        gone = torch.cat([(weight.flatten(1) == 0).all(1) for weight in convs])
        assert gone.float().mean().item() == pytest.approx(target, abs=0.02)
        assert not (result.student.classifier.weight == 0).any()
        flat = torch.cat([(weight == 0).flatten() for weight in convs])
    assert flat.float().mean().item() == pytest.approx(told[3], abs=1e-6)
    total = sum(p.numel() for p in result.student.parameters())
    assert result.history[-1].diagnostics["prune/nonzero_params"] == total - int(flat.sum())


def test_a_stronger_pull_makes_more_zeros_and_the_debias_phase_has_none(make_config: Make, digits: DataSet) -> None:
    def sparsity(strength: float) -> list[float]:
        config = make_config(teacher=None, train={"epochs": 4}, prune={"strength": strength, "debias_fraction": 0.25})
        return [r.diagnostics["prune/sparsity"] for r in fit(config, data=digits).history]

    weak, strong = sparsity(1e-4), sparsity(0.2)
    assert strong[2] > weak[2] + 0.1
    assert strong[3] == strong[2]


def test_a_resumed_run_prunes_bit_identically(make_config: Make, digits: DataSet, tmp_path: Path) -> None:
    prune = {"strength": 1e-2, "target_sparsity": 0.5, "debias_fraction": 0.5}
    config = make_config(teacher=None, train={"epochs": 4}, prune=prune)
    whole = fit(config, data=digits)
    for end in (1, 2, 3):
        fit(config, data=digits, out_dir=tmp_path, on_epoch=lambda r, end=end: "stop" if r.epoch == end else None)
    resumed = fit(config, data=digits, out_dir=tmp_path)
    assert resumed.resumed_at == 3
    for one, two in zip(whole.student.parameters(), resumed.student.parameters(), strict=True):
        assert torch.equal(one, two)


def test_what_is_zeroed_are_the_smallest_weights() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.Flatten(), nn.Linear(2, 2, bias=False))
    network[0].weight.data = torch.tensor([0.1, 3.0]).view(2, 1, 1, 1)
    network[2].weight.data = torch.tensor([[0.2, -0.3], [4.0, -5.0]])
    Prune(PruneConfig(target_sparsity=0.5), network, 2).begin(1)
    assert network[0].weight.flatten().tolist() == [0, 3]
    assert network[2].weight.tolist() == [[0, 0], [4, -5]]


@pytest.mark.parametrize(
    ("prune", "message"),
    [
        ({"granularity": "channel"}, "must be 'weight' or 'filter'"),
        ({"strength": 0}, "must be greater than 0"),
        ({"target_sparsity": 1.0}, "must be less than 1"),
        ({"debias_fraction": 0}, "must be greater than 0"),
        ({"sparsity": 0.5}, "did you mean 'target_sparsity'"),
    ],
)
def test_faults_are_told(prune: dict[str, Any], message: str, make_config: Make) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config(prune=prune)

"""A search in which the method itself is a choice, with modes; and what its resume knows of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlflow.tracking import MlflowClient

from hksd.config.run import from_tree, load
from hksd_search.study.records import read_records
from hksd_search.tracking.tracker import EXPERIMENT

Make = Callable[..., Any]
ONE_OF = {
    "kd": {"kd": {"weight": {"log_uniform": [0.5, 2]}}},
    "review": {"review": {"weight": {"log_uniform": [0.1, 1]}, "channels": 8}},
    "crd": {"crd": {"weight": {"log_uniform": [0.1, 1]}, "negatives": 64, "dims": 8}},
}


def test_a_search_over_methods_draws_trains_logs_exports_and_goes_on(
    hksd: Make, write_space: Make, tmp_path: Path
) -> None:
    write_space(
        tmp_path / "space.yaml",
        terms={"one_of": ONE_OF},
        prune={"strength": {"log_uniform": [1e-5, 1e-3]}},
        train={"epochs": 1},
        search={"trials": 8},
    )
    words = ("search", "space.yaml", "--name", "arena", "--runs", "runs", "--json")
    first = hksd(*words, "--trials", "5", cwd=tmp_path)
    assert first.process.returncode == 0, first.err
    program = hksd("search", "arena", "--extend", "3", "--json", cwd=tmp_path)
    assert program.process.returncode == 0, program.err
    assert sum(program.json()["trials"][status] for status in ("complete", "pruned", "failed")) == 8
    drawn = [record for record in read_records(tmp_path / "runs" / "arena") if record.config and not record.arm]
    methods = [set(from_tree(record.config).terms) & set(ONE_OF) for record in drawn]
    assert all(len(chosen) == 1 for chosen in methods)
    assert len({frozenset(chosen) for chosen in methods}) > 1
    assert load(tmp_path / "runs" / "arena" / "export" / "best.yaml").prune is not None
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(EXPERIMENT)
    children = [run for run in client.search_runs([experiment.experiment_id]) if run.data.tags["hksd.kind"] == "trial"]
    assert len(children) == program.json()["trials"]["complete"]
    assert all("prune/sparsity" in run.data.metrics for run in children)

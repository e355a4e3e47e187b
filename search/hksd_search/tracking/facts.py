"""What MLflow is told of a trial: parameters, metrics, tags."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hksd.config.run import RunConfig, config_hash, dump, flatten
from hksd_search.study.records import Assignment, Record

ACCURACY = "val/accuracy"
STATUS = {"complete": "FINISHED", "pruned": "KILLED", "interrupted": "KILLED", "failed": "FAILED"}


def flat_params(config: RunConfig) -> dict[str, str]:
    """The resolved configuration as flat parameters: ``terms.kd.weight`` -> ``0.9``."""
    return {key: str(value) for key, value in flatten(dump(config)).items()}


def epoch_metrics(report: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of an epoch (fields of `hksd.run.outcome.EpochReport`) under their MLflow names."""
    return {
        ACCURACY: report["val_accuracy"],
        "val/loss": report["val_loss"],
        "train/accuracy": report["train_accuracy"],
        "train/loss": report["train_loss"],
        "lr": report["lr"],
        "images_per_s": report["images_per_s"],
        "epoch_s": report["seconds"],
        **{f"loss/{name}": value for name, value in report["terms"].items()},
        **report["diagnostics"],
    }


def trial_start(search: str, assignment: Assignment) -> dict[str, Any]:
    """What the run of a trial begins with: name, tags, params, metrics."""
    tags = {
        "hksd.search": search,
        "hksd.kind": "trial",
        "hksd.trial": str(assignment.number),
        "hksd.arm": assignment.arm or "",
        "hksd.status": "running",
        "hksd.config_hash": config_hash(assignment.config),
    }
    if assignment.fork:
        tags |= {"hksd.parent": str(assignment.fork.parent), "hksd.forked_at": str(assignment.fork.epoch)}
    metrics = {name: float(value) for name, value in assignment.costs.items()}
    return {"name": assignment.label, "tags": tags, "params": flat_params(assignment.config), "metrics": metrics}


def trial_end(record: Record) -> dict[str, Any]:
    """What the run of a trial ends with: status, tags."""
    reason = {"hksd.reason": record.reason[:5000]} if record.reason else {}
    nodes = {"hksd.node": ", ".join(record.nodes)} if record.nodes else {}
    return {"status": STATUS[record.status], "tags": {"hksd.status": record.status, **nodes, **reason}}

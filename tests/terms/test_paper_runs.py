"""The runs in spaces/paper: they load, and their terms fit their networks."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from hksd.config import run as config
from hksd.config.train import learning_rate
from hksd.modes import MODES
from hksd.run.objective import verify
from hksd.terms import TERMS
from hksd_search.space import space as spaces

FILES = sorted((Path(__file__).resolve().parents[2] / "spaces" / "paper").glob("*.yaml"))
CLASSES = {"cifar10": 10, "cifar100": 100}
USUAL = {
    "kd": "kd",
    "at": "attention_transfer",
    "fitnet": "fitnet",
    "nst": "nst",
    "sp": "similarity",
    "pkt": "pkt",
    "rkd": "rkd",
    "vid": "vid",
    "cc": "correlation",
    "dkd": "dkd",
    "dist": "dist",
    "mlkd": "mlkd",
    "fsp": "fsp",
}


def load(name: str) -> config.RunConfig:
    return config.load(spaces.find(name))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_run_of_a_paper_loads_and_its_terms_fit_its_networks(file: Path) -> None:
    run = config.load(file)
    verify(run, in_channels=3, classes=CLASSES[run.data.name], image_size=32)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_run_of_a_paper_says_where_its_weights_come_from(file: Path) -> None:
    head = [line for line in file.read_text().splitlines() if line.startswith("#")]
    assert f"`{file.stem}`" in head[0]
    assert any(label in " ".join(head) for label in ("CONFIRMED", "SECONDARY", "RECONSTRUCTED"))


def test_every_term_and_every_mode_has_a_run() -> None:
    runs = [config.load(file) for file in FILES]
    assert {name for run in runs for name in run.terms.active()} == set(TERMS)
    assert {mode for run in runs for mode in MODES if getattr(run, mode) is not None} == set(MODES)


@pytest.mark.parametrize(("name", "term"), USUAL.items(), ids=list(USUAL))
def test_the_defaults_of_a_term_are_its_published_values(name: str, term: str) -> None:
    used, default = load(name).terms[term], TERMS[term].config()
    schedule = {"delay_epochs": 0.0, "warmup_epochs": 0.0, "off_fraction": 0.0}
    expected = dataclasses.replace(default, weight=0.9 if name == "kd" else default.weight)
    assert dataclasses.replace(used, **schedule) == expected


@pytest.mark.parametrize("name", [name for name in USUAL if name not in ("fsp", "mlkd")] + ["kd-standardized"])
def test_the_methods_share_one_schedule_and_one_pair(name: str) -> None:
    run, first = load(name), load("kd")
    assert (run.train, run.data, run.teacher, run.student) == (first.train, first.data, first.teacher, first.student)


def test_the_rates_fall_where_the_published_ones_do() -> None:
    train = load("kd").train
    assert not train.nesterov
    rates = {epoch: learning_rate(train, epoch / 240) for epoch in (0, 149, 150, 179, 180, 209, 210, 239)}
    expected = [0.05, 0.05, 5e-3, 5e-3, 5e-4, 5e-4, 5e-5, 5e-5]
    assert list(rates.values()) == pytest.approx(expected)


def test_fsp_has_two_stages_of_training_that_do_not_overlap() -> None:
    run = load("fsp")
    terms, epochs = run.terms, run.train.epochs
    for epoch in range(epochs):
        for part in (0.0, 0.999):
            running = [name for name, term in terms.items() if term.factor(epoch + part, epochs) > 0]
            assert running == (["fsp"] if epoch < 30 else ["ce"]), epoch + part
    drops = [epoch for epoch in range(1, epochs) if _rate(run, epoch + 0.5) < _rate(run, epoch - 0.5)]
    assert drops == [180, 210, 240]


def _rate(run: config.RunConfig, epoch: float) -> float:
    return learning_rate(run.train, epoch / run.train.epochs)

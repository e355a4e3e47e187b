"""What cannot be exported: told before a search begins; where it is found out at the end, all else is written."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from hksd import data as datasets
from hksd.config.run import RunConfig, dump, from_tree, load
from hksd.deploy import export as exporting
from hksd.errors import RunError, UserError
from hksd.fit import fit
from hksd.models import weights
from hksd_search.console import Display
from hksd_search.export import export_trial
from hksd_search.run import Home, look
from hksd_search.space import networks
from hksd_search.space import space as spaces
from hksd_search.study.reading import SearchFolder
from hksd_search.study.records import Record, trial_folder

Make = Callable[..., Any]
NETWORK = """
import torch
from torch import nn

class Net(nn.Module):
    early = False

    def __init__(self, classes, in_channels, width):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(in_channels, int(8 * width), 3, 2, 1), nn.ReLU())
        self.fc = nn.Linear(int(8 * width), classes)

    def forward(self, x):
        if self.early and x.abs().max().item() > 100:
            return 2 * self.fc(self.body(x).mean((2, 3)))
        return self.fc(self.body(x).mean((2, 3)))

class Early(Net):
    early = True

class NoOnnx(Net):
    def forward(self, x):
        out = super().forward(x)
        return out + torch.special.bessel_j0(out.detach().float())

def no_onnx(num_classes, in_channels, width=1.0):
    return NoOnnx(num_classes, in_channels, width)

def fine(num_classes, in_channels, width=1.0):
    return Net(num_classes, in_channels, width)

def early(num_classes, in_channels, width=1.0):
    return Early(num_classes, in_channels, width)

def early_when_wide(num_classes, in_channels, width=1.0):
    return (Early if width > 1.5 else Net)(num_classes, in_channels, width)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a module that lies in the working directory."""
    name = f"exits{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def looked(file: Path, resume: bool = False) -> None:
    """The first phase of a search of that space."""
    home = Home(file.parent / "runs", file.parent / "runs" / "x", "x", None, None)
    look(spaces.load(str(file)), home, Display(Console(quiet=True), 1), resume)


@pytest.mark.parametrize(
    "student",
    [
        {"model": "{m}:early"},
        {"model": {"choice": ["resnet8", "{m}:fine", "{m}:early"]}, "width": 1.0},
        {"model": {"choice": ["{m}:fine", "{m}:early_when_wide"]}, "width": {"uniform": [0.5, 2.0]}},
        {"model": "{m}:early_when_wide", "width": {"choice": [0.5, 2.0, 1.0]}},
    ],
    ids=["alone", "one of several", "at the end of a range", "a choice of widths"],
)
def test_a_search_of_what_cannot_be_exported_ends_before_it_begins(
    student: dict[str, Any], module: str, write_space: Make, tmp_path: Path
) -> None:
    tree = json.loads(json.dumps(student).replace("{m}", module))
    space = write_space(tmp_path / "space.yaml", terms={"squeeze": {"weight": 0}}, student={"width": 1.0, **tree})
    with pytest.raises(UserError, match=rf"^student\.model: {module}:early\w* cannot be exported.*\(line 14 of"):
        looked(space)
    assert not (tmp_path / "runs" / "x").exists()


def test_one_that_onnx_cannot_say_is_refused_before_the_teacher_where_latency_is_asked_for(
    module: str, write_space: Make, tmp_path: Path
) -> None:
    student = {"model": f"{module}:no_onnx", "width": {"uniform": [0.5, 2.0]}}
    parts = {"terms": {"squeeze": {"weight": 0}}, "student": student}
    looked(write_space(tmp_path / "space.yaml", **parts))
    space = write_space(tmp_path / "space.yaml", **parts, search={"minimize": ["latency_ms"]})
    with pytest.raises(
        UserError, match=rf"^student\.model: {module}:no_onnx cannot be written as ONNX.*leave latency_ms"
    ):
        looked(space)
    assert not (tmp_path / "runs" / "x").exists()


def test_students_beyond_the_limits_are_not_looked_at(
    module: str, write_space: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = {"model": f"{module}:early_when_wide", "width": {"uniform": [0.5, 2.0]}}
    terms, search = {"squeeze": {"weight": 0}}, {"limits": {"params": 150}}  # 14 weights for each channel
    seen: list[float] = []
    monkeypatch.setattr(networks, "rehearse", lambda spec, **_: seen.append(spec.width))
    looked(write_space(tmp_path / "space.yaml", terms=terms, student=student, search=search))
    assert min(seen) == 0.5
    assert max(seen) < 1.5


def test_a_search_that_goes_on_is_warned_alone(
    module: str, write_space: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    student = {"model": f"{module}:early", "width": 1.0}
    space = write_space(tmp_path / "space.yaml", terms={"squeeze": {"weight": 0}}, student=student)
    with caplog.at_level(logging.WARNING):
        looked(space, resume=True)
    assert [record.getMessage().partition(", with")[0] for record in caplog.records] == [
        f"student.model: {module}:early cannot be exported"
    ]


@pytest.fixture
def trained(module: str, make_config: Make, tmp_path: Path) -> SearchFolder:
    """A search whose only trial is a student of the module."""
    data = {"name": "digits", "limit": 200, "validation": 0.25}
    own = {"model": f"{module}:fine", "width": 1.0}
    config: RunConfig = make_config(data=data, terms={"ce": {}}, student=own, train={"epochs": 1})
    config = from_tree(dump(config))
    folder = tmp_path / "runs" / "x"
    result = fit(config, out_dir=trial_folder(folder, 0))
    costs = {"params": 100, "mflops": 1.0}
    record = Record(0, "complete", None, dump(config), costs, 1, result.val_accuracy, 1.0, None)
    facts = {"name": "x", "minimize": [], "teacher": {"model": "resnet8", "accuracy": 0.9, "params": 9, "mflops": 3.0}}
    (folder / "search.json").write_text(json.dumps(facts))
    return SearchFolder("x", folder, [record], facts)


def test_what_can_be_written_is_written_what_cannot_is_told_and_no_older_program_stays(
    trained: SearchFolder, module: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_onnx(program: Any, example: Any) -> Any:
        raise RunError("onnx has\nno such operator")

    monkeypatch.setattr(exporting, "_onnx_program", no_onnx)
    where = export_trial(trained)
    assert (where / exporting.PROGRAM_FILE).exists()
    sys.modules[module].Net.early = True
    with caplog.at_level(logging.WARNING):
        assert export_trial(trained, onnx=True) == where
    assert sorted(path.name for path in where.iterdir()) == ["best.yaml", "card.md", "student.safetensors"]
    assert load(where / "best.yaml").student.model == f"{module}:fine"
    assert "fc.weight" in weights.read(where / "student.safetensors")[0]
    card = (where / "card.md").read_text()
    for name in ("student.pt2", "student.onnx"):
        assert f"**`{name}` is missing:** " in card
        (said,) = [r.getMessage() for r in caplog.records if f"{name} cannot be made: " in r.getMessage()]
        assert "a branch in Python depends on" in said or said.endswith("onnx has; everything else is there")
    assert "torch.export.load" not in card
    assert "Validation accuracy" in card


def test_the_command_writes_the_rest_says_what_is_missing_and_ends_with_1(
    trained: SearchFolder, module: str, inside: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hksd_search.study import reading

    monkeypatch.setattr(reading, "open_search", lambda *_: trained)
    sys.modules[module].Net.early = True
    code, _, said = inside("export", "x", "--to", "home", cwd=tmp_path)
    assert code == 1
    assert "failed: student.pt2 cannot be made: torch.export cannot capture it: a branch in Python" in said
    assert "best.yaml, student.safetensors, card.md are in home" in said
    assert not (tmp_path / "home" / "student.pt2").exists()
    sys.modules[module].Net.early = False
    code, said, _ = inside("export", "x", "--to", "home", cwd=tmp_path)
    assert (code, said) == (0, "trial 0 exported to home\n")
    assert datasets.load(load(tmp_path / "home" / "best.yaml").data).validation

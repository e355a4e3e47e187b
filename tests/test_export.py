"""What a user takes home: files that work alone, say the truth and hold nothing that only training needs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hksd import models
from hksd.config.run import RunConfig, load
from hksd.data import DataSet
from hksd.deploy import export as exporting
from hksd.deploy import onnx as onnx_export
from hksd.deploy.export import Deployed, Row, export
from hksd.errors import UserError
from hksd.fit import fit, student_metadata
from hksd.models import weights
from hksd.models.taps import TappedNet
from hksd.run.outcome import Result

Make = Callable[..., Any]
FOUR = ["best.yaml", "card.md", "student.pt2", "student.safetensors"]
TERMS: dict[str, Any] = {
    "ce": {},
    "kd": {"weight": 0.5},
    "squeeze": {"top_dim": 16, "task_weight": 0.1},
    "adversarial": {"hidden": 8, "warmup_epochs": 0},
}


@pytest.fixture(scope="module")
def config(make_config: Make) -> RunConfig:
    return make_config(terms=TERMS, student={"width": 0.5, "descriptor_dim": 12}, seed=3)


@pytest.fixture(scope="module")
def result(config: RunConfig, digits: DataSet, cache_dir: Path) -> Result:
    return fit(config, data=digits, cache_dir=cache_dir)


@pytest.fixture(scope="module")
def exported(
    config: RunConfig, result: Result, digits: DataSet, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, float]]:
    """The export, and the facts of its check."""
    folder = tmp_path_factory.mktemp("export") / "new" / "student"
    made = export(
        config,
        result.student,
        digits,
        folder,
        metadata=student_metadata(config, digits, result),
        origin="From a test.",
        rows=[Row("teacher", "resnet8", 0.5, 1234567, 1.5), Row("other", "?", None, None, None)],
        notes=["A remark."],
    )
    assert made.missing == {}
    return folder, made.facts


@pytest.fixture(scope="module")
def folder(exported: tuple[Path, dict[str, float]]) -> Path:
    return exported[0]


@pytest.fixture(scope="module")
def images(digits: DataSet) -> Tensor:
    """Validation images on 0..1."""
    return torch.from_numpy(digits.validation.images.copy()).permute(0, 3, 1, 2).float() / 255


def expected(student: TappedNet, images: Tensor, data: DataSet) -> Tensor:
    with torch.no_grad():
        logits: Tensor = student((images - data.mean[0]) / data.std[0])
    return logits


def test_an_export_is_four_files(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == FOUR


def test_the_configuration_of_an_export_is_the_runs_own(folder: Path, config: RunConfig) -> None:
    assert load(folder / "best.yaml") == config


def test_running_the_configuration_of_an_export_gives_its_accuracy_exactly(
    folder: Path, result: Result, digits: DataSet, cache_dir: Path, exported: tuple[Path, dict[str, float]]
) -> None:
    again = fit(load(folder / "best.yaml"), data=digits, cache_dir=cache_dir)
    assert again.val_accuracy == result.val_accuracy == exported[1]["val_accuracy"]
    state, _ = weights.read(folder / "student.safetensors")
    assert all(torch.equal(state[name], value) for name, value in again.student.state_dict().items())


def test_the_weights_of_an_export_are_the_students_and_nothing_else(
    folder: Path, result: Result, config: RunConfig
) -> None:
    state, metadata = weights.read(folder / "student.safetensors")
    own = result.student.state_dict()
    assert set(state) == set(own)
    assert all(torch.equal(state[name], own[name]) for name in own)
    network = models.build(config.student.model, in_channels=1, classes=10, width=0.5, descriptor=12, image_size=8)
    assert weights.load_into(network, folder / "student.safetensors") == metadata
    assert metadata["model"] == "resnet8"
    assert json.loads(metadata["classes"]) == list("0123456789")


def test_the_program_of_an_export_holds_no_more_weights_than_the_student(folder: Path, result: Result) -> None:
    program = torch.export.load(folder / "student.pt2")
    count = sum(parameter.numel() for parameter in program.parameters())
    assert count == sum(parameter.numel() for parameter in result.student.parameters())


@pytest.mark.parametrize("batch", [1, 2, 7, 100])
def test_the_program_answers_like_the_network_for_batches_of_any_size(
    batch: int, folder: Path, result: Result, digits: DataSet, images: Tensor
) -> None:
    program = torch.export.load(folder / "student.pt2").module()
    torch.testing.assert_close(
        program(images[:batch]), expected(result.student, images[:batch], digits), rtol=1e-4, atol=1e-5
    )


def test_the_facts_of_the_check_are_those_of_the_program(
    exported: tuple[Path, dict[str, float]], digits: DataSet, images: Tensor
) -> None:
    answers = torch.export.load(exported[0] / "student.pt2").module()(images).argmax(1)
    right = (answers == torch.from_numpy(digits.validation.labels.copy())).sum().item()
    assert exported[1]["val_accuracy"] == right / len(digits.validation)
    assert 0 <= exported[1]["max_difference"] < 1e-4


def test_the_code_of_the_card_runs_where_there_is_no_hksd(folder: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (folder / "card.md").read_text(), re.DOTALL)
    assert len(blocks) == 1
    alone = "import sys\nfor name in ('hksd', 'search', 'torchvision', 'safetensors'):\n    sys.modules[name] = None\n"
    done = subprocess.run(
        [sys.executable, "-I", "-c", alone + blocks[0]], cwd=folder, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"tensor\(\[\d, \d\]\)\n", done.stdout)


def test_the_card_says_what_was_measured(
    folder: Path, result: Result, config: RunConfig, digits: DataSet, exported: tuple[Path, dict[str, float]]
) -> None:
    card = (folder / "card.md").read_text()
    count = sum(parameter.numel() for parameter in result.student.parameters())
    for text in (
        f"{count:,} parameters",
        "From a test.",
        "A remark.",
        "seed 3",
        f"{result.val_accuracy:.2%}",
        result.config_hash,
        digits.fingerprint,
        "0, 1, 2, 3",
        "| teacher | resnet8 | 50.00% | 1,234,567 | 1.50 |",
        "| other | ? | - | - | - |",
        f"{len(digits.validation):,} images",
        "ce 1",
        "kd 0.5",
        "adversarial 0.1",
    ):
        assert text in card, text
    assert str(folder) not in card
    assert str(Path.home()) not in card or str(Path.home()) == "/"


@pytest.fixture(scope="module")
def with_onnx(
    config: RunConfig, result: Result, digits: DataSet, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, float]]:
    folder = tmp_path_factory.mktemp("onnx")
    return folder, export(config, result.student, digits, folder, metadata={}, onnx=True).facts


def test_onnx_is_one_file_more_and_its_difference_is_on_the_card(with_onnx: tuple[Path, dict[str, float]]) -> None:
    folder, facts = with_onnx
    assert sorted(path.suffix for path in folder.iterdir()) == [".md", ".onnx", ".pt2", ".safetensors", ".yaml"]
    assert 0 <= facts["onnx_max_difference"] < 1e-4
    assert f"differs by at most {facts['onnx_max_difference']:.1e} in a logit" in (folder / "card.md").read_text()


def test_the_code_of_the_card_for_onnx_runs_without_torch(with_onnx: tuple[Path, dict[str, float]]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (with_onnx[0] / "card.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    alone = "import sys\nfor name in ('hksd', 'search', 'torch'):\n    sys.modules[name] = None\n"
    command = [sys.executable, "-I", "-c", alone + blocks[1]]
    done = subprocess.run(command, cwd=with_onnx[0], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"\[\d \d\]\n", done.stdout)


def test_an_onnx_program_that_answers_otherwise_is_not_exported(
    config: RunConfig,
    result: Result,
    digits: DataSet,
    with_onnx: tuple[Path, dict[str, float]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers, (written,) = onnx_export.answers, with_onnx[0].glob("*.onnx")
    monkeypatch.setattr(onnx_export, "to_onnx", lambda *_: written.read_bytes())  # translated once, above
    monkeypatch.setattr(onnx_export, "answers", lambda session, images: answers(session, images) * 1.001)
    made = export(config, result.student, digits, tmp_path / "new", metadata={}, onnx=True)
    assert re.match(r"it differs from the network by \d", made.missing["student.onnx"])
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == FOUR


@pytest.mark.parametrize("channels", [1, 3])
def test_images_with_colours_are_normalised_channel_by_channel(channels: int, digits: DataSet) -> None:
    mean, std = [0.1, 0.2, 0.3][:channels], [0.4, 0.5, 0.6][:channels]
    given = torch.rand(2, channels, 4, 4)
    found = Deployed(torch.nn.Identity(), mean, std)(given)
    for channel in range(channels):
        torch.testing.assert_close(found[:, channel], (given[:, channel] - mean[channel]) / std[channel])


def test_a_program_that_answers_otherwise_than_the_network_is_not_exported(
    config: RunConfig, result: Result, digits: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Deployed, "forward", lambda self, images: self.student((images - self.mean) / self.std) * 1.001)
    made = export(config, result.student, digits, tmp_path / "new", metadata={})
    assert re.match(r"it differs from the network by \d", made.missing["student.pt2"])
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [name for name in FOUR if name[-1] != "2"]


def test_a_program_with_nan_is_not_exported(
    config: RunConfig, result: Result, digits: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Deployed, "forward", lambda self, images: self.student(images) * float("nan"))
    assert "differs" in export(config, result.student, digits, tmp_path / "new", metadata={}).missing["student.pt2"]


def test_a_folder_that_cannot_be_written_is_a_users_error(
    config: RunConfig, result: Result, digits: DataSet, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="the export cannot be written") as caught:
        export(config, result.student, digits, tmp_path / "file" / "out", metadata={})
    assert str(tmp_path / "file" / "out") in str(caught.value)


def test_exporting_again_replaces_the_files(
    folder: Path, config: RunConfig, result: Result, digits: DataSet, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    export(config, result.student, digits, tmp_path, metadata={}, origin="Another one.")
    card = (tmp_path / exporting.CARD_FILE).read_text()
    assert "Another one." in card
    assert "From a test." not in card
    assert len(list(tmp_path.iterdir())) == 4

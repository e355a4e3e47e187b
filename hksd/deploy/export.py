"""What a user takes home: the student as best.yaml, safetensors and a torch.export program, with a card; ONNX too.

The exported programs contain the normalisation: they take images on the 0..1 scale. The one of torch.export needs
torch alone, the one in ONNX any runtime for that.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from hksd.config.run import RunConfig, dump_yaml
from hksd.data import DataSet
from hksd.data.augment import batches_of
from hksd.deploy import onnx as onnx_export
from hksd.errors import RunError, UserError
from hksd.files import write_atomically
from hksd.models import weights
from hksd.models.size import Size, size_of
from hksd.models.taps import TappedNet
from hksd.run import evaluate
from hksd.run.evaluate import EVALUATION_BATCH

CONFIG_FILE, WEIGHTS_FILE, PROGRAM_FILE, CARD_FILE = "best.yaml", "student.safetensors", "student.pt2", "card.md"
ONNX_FILE = "student.onnx"
PARITY_TOLERANCE = 1e-4  # largest difference of a logit between network and exported program, relative to the largest


@dataclass(frozen=True)
class Row:
    """One line of the comparison on the card: a network with its size and its validation accuracy."""

    name: str
    model: str
    val_accuracy: float | None
    params: int | None
    mflops: float | None


class Deployed(nn.Module):
    """A student with its normalisation: images (N, channels, H, W) on 0..1 -> logits (N, C)."""

    def __init__(self, student: nn.Module, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.student = student
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32)[:, None, None])
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        """images: (N, channels, H, W), float32, 0..1."""
        logits: Tensor = self.student((images - self.mean) / self.std)
        return logits


def export(
    config: RunConfig,
    student: TappedNet,
    data: DataSet,
    folder: Path,
    *,
    metadata: dict[str, str],
    rows: Sequence[Row] = (),
    origin: str = "",
    notes: Sequence[str] = (),
    onnx: bool = False,
) -> dict[str, float]:
    """Write best.yaml, student.safetensors, student.pt2 and card.md into `folder`, and student.onnx when asked.

    Args:
        config: the run that made the student; it becomes best.yaml.
        student: the trained network.
        data: images to check the exported program on (the validation split).
        folder: where to write; made if missing.
        metadata: text header of the weights file.
        rows: comparison for the card.
        origin: where the student comes from, one sentence for the card.
        notes: further remarks for the card, each a sentence.
        onnx: write student.onnx as well.

    Returns:
        Facts of the parity check: ``max_difference`` of a logit, ``val_accuracy`` of the program, and with `onnx` the
        ``onnx_max_difference``.

    Raises:
        UserError: the folder cannot be written.
        RunError: an exported program cannot be made, or does not give the network's answers.
    """
    student = student.cpu().eval()
    program = Deployed(student, data.mean, data.std).eval()
    example = torch.zeros(2, data.channels, data.image_size, data.image_size)
    batch = torch.export.Dim("batch", min=1)
    try:
        exported = torch.export.export(program, (example,), dynamic_shapes=({0: batch},))
    except Exception as error:  # a network of the user's own may do what torch.export cannot capture
        raise RunError(f"torch.export cannot capture {config.student.model}: {error}") from error
    buffer = io.BytesIO()
    torch.export.save(exported, buffer)
    files = {PROGRAM_FILE: buffer.getvalue()}
    loaded = torch.export.load(io.BytesIO(files[PROGRAM_FILE])).module()
    facts = _parity(student, loaded, PROGRAM_FILE, data, config)
    if onnx:
        files[ONNX_FILE] = onnx_export.to_onnx(program, example)
        running = partial(onnx_export.answers, onnx_export.session(files[ONNX_FILE]))
        facts["onnx_max_difference"] = _parity(student, running, ONNX_FILE, data, config)["max_difference"]
    size = size_of(config.student.spec(), **data.image_shape)
    try:
        write_atomically(folder / CONFIG_FILE, dump_yaml(config).encode())
        weights.save(folder / WEIGHTS_FILE, student, metadata)
        for name, content in files.items():
            write_atomically(folder / name, content)
        card = _card(config, data, size, facts, rows, origin, notes, metadata)
        write_atomically(folder / CARD_FILE, card.encode())
    except OSError as error:
        raise UserError(f"{folder}: the export cannot be written: {error.strerror}") from error
    return facts


@torch.no_grad()
def _parity(
    student: TappedNet, program: Callable[[Tensor], Tensor], name: str, data: DataSet, config: RunConfig
) -> dict[str, float]:
    """Compare a saved program, loaded back, with the network on the validation split."""
    mean, std = torch.tensor(data.mean)[:, None, None], torch.tensor(data.std)[:, None, None]
    batches = batches_of(data.validation, data, config.data, torch.device("cpu"), augment=False)
    expected, given, labels = [], [], []
    for pixels, part in batches.raw(EVALUATION_BATCH):
        images = pixels.float() / 255
        expected.append(student((images - mean) / std))
        given.append(program(images))
        labels.append(part)
    answers, wanted = torch.cat(given), torch.cat(expected)
    difference = (answers - wanted).abs().max().item()
    if not difference <= PARITY_TOLERANCE * max(1.0, wanted.abs().max().item()):
        raise RunError(f"the exported program {name} differs from the network by {difference:g} in a logit")
    return {"max_difference": difference, "val_accuracy": evaluate.accuracy(answers, torch.cat(labels))}


def _card(
    config: RunConfig,
    data: DataSet,
    size: Size,
    facts: dict[str, float],
    rows: Sequence[Row],
    origin: str,
    notes: Sequence[str],
    metadata: dict[str, str],
) -> str:
    height, channels = data.image_size, data.channels
    table = [
        "| network | model | validation accuracy | parameters | MFLOPs (2 x MACs) |",
        "|---|---|---|---|---|",
        *(
            f"| {row.name} | {row.model} | {_percent(row.val_accuracy)} "
            f"| {'-' if row.params is None else f'{row.params:,}'} "
            f"| {'-' if row.mflops is None else f'{row.mflops:.2f}'} |"
            for row in rows
        ),
    ]
    terms = ", ".join(f"{name} {term.weight:.4g}" for name, term in config.terms.active().items())
    lines = [
        f"# Student {config.student.model}, width {config.student.width:g}, on {data.name}",
        "",
        origin,
        "",
        *(table if rows else []),
        "",
        "## Use it (needs torch alone)",
        "",
        "```python",
        "import torch",
        'model = torch.export.load("student.pt2").module()',
        f"images = torch.rand(2, {channels}, {height}, {height})  # N images, channels, height, width, values 0..1",
        "print(model(images).argmax(1))  # class numbers",
        "```",
        "",
        "`student.pt2` can run code once somebody has changed it (`torch.export.load` unpickles parts of it): load "
        "only files that you trust, and else `student.safetensors`, which holds nothing but numbers.",
        "",
        *(_onnx_use(channels, height) if "onnx_max_difference" in facts else []),
        f"Classes, in order: {', '.join(data.classes)}. The normalisation is inside the program.",
        "",
        "## Facts",
        "",
        f"- Size: {size.params:,} parameters, {size.mflops:.2f} MFLOPs an image (2 x MACs), "
        f"{size.peak_memory_mb:.3g} MB for an inference (float32, one image). Training-only parts "
        "(adaptors, attention estimators, discriminator) are not in it.",
        f"- Trained for {config.train.epochs} epochs on {len(data.train):,} images, seed {config.seed}, "
        f"with loss terms: {terms}.",
        f"- Validation accuracy {_percent(facts['val_accuracy'])} on {len(data.validation):,} images; "
        f"the exported program differs from the network by at most {facts['max_difference']:.1e} in a logit.",
        *(
            [f"- `{ONNX_FILE}` in ONNX Runtime differs by at most {facts['onnx_max_difference']:.1e} in a logit."]
            if "onnx_max_difference" in facts
            else []
        ),
        f"- Configuration hash {metadata.get('config_hash', '-')}, data fingerprint {data.fingerprint}.",
        f"- `hksd train {CONFIG_FILE}` repeats the run; on the same processor and versions it repeats the number.",
        "",
        "## Limits",
        "",
        "- One seed. The configuration was chosen by this validation accuracy, which is therefore optimistic; the "
        "test split was not opened. `hksd evaluate . --split test` opens it, and records that.",
        *(f"- {note}" for note in notes),
        "",
    ]
    return "\n".join(lines)


def _onnx_use(channels: int, height: int) -> list[str]:
    return [
        "With ONNX Runtime in place of torch:",
        "",
        "```python",
        "import numpy, onnxruntime",
        f'session = onnxruntime.InferenceSession("{ONNX_FILE}", providers=["CPUExecutionProvider"])',
        f"images = numpy.random.rand(2, {channels}, {height}, {height}).astype(numpy.float32)",
        f'print(session.run(None, {{"{onnx_export.INPUT}": images}})[0].argmax(1))  # class numbers',
        "```",
        "",
    ]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"

"""What a user takes home: the student as best.yaml, safetensors and a torch.export program, with a card; ONNX too.

The exported programs contain the normalisation: they take images on the 0..1 scale. The one of torch.export needs
torch alone, the one in ONNX any runtime for that. Configuration and weights come first, and each program is made apart
from the rest: what cannot be made is told, on the card too.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from hksd.config.run import RunConfig, dump_yaml
from hksd.data import DataSet
from hksd.data.augment import batches_of
from hksd.data.crops import centre_side
from hksd.data.picture import GROUND
from hksd.data.settings import DataConfig
from hksd.deploy import onnx as onnx_export
from hksd.deploy.capture import captured
from hksd.errors import RunError, UserError
from hksd.files import write_atomically
from hksd.models import weights
from hksd.models.faults import reason
from hksd.models.size import Size, size_of
from hksd.models.taps import TappedNet
from hksd.run import evaluate
from hksd.run.evaluate import EVALUATION_BATCH

CONFIG_FILE, WEIGHTS_FILE, PROGRAM_FILE, CARD_FILE = "best.yaml", "student.safetensors", "student.pt2", "card.md"
ONNX_FILE = "student.onnx"
FILES = CONFIG_FILE, WEIGHTS_FILE, PROGRAM_FILE, ONNX_FILE, CARD_FILE
PARITY_TOLERANCE = 1e-4  # largest difference of a logit between network and exported program, relative to the largest


@dataclass(frozen=True)
class Row:
    """One line of the comparison on the card: a network with its size and its validation accuracy."""

    name: str
    model: str
    val_accuracy: float | None
    params: int | None
    mflops: float | None


@dataclass(frozen=True)
class Exported:
    """What came of an export.

    Attributes:
        facts: of the check: ``val_accuracy``, and for a program that was made the largest difference of a logit,
            ``max_difference`` or ``onnx_max_difference``.
        missing: the programs that could not be made, with the reason.
    """

    facts: dict[str, float]
    missing: dict[str, str]


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
        # In the order in which the program is captured: a `contiguous().view()` in it holds images to that order.
        ordered = ((images - self.mean) / self.std).clone(memory_format=torch.contiguous_format)
        logits: Tensor = self.student(ordered)
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
) -> Exported:
    """Write best.yaml, student.safetensors, student.pt2 and card.md into `folder`, and student.onnx when asked.

    A program that cannot be made, or does not give the network's answers, is left out (and an older one removed).

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
        Facts of the check, and what is missing.

    Raises:
        UserError: the folder cannot be written.
    """
    student = student.cpu().eval()
    size = size_of(config.student.spec(), **data.image_shape)
    try:
        write_atomically(folder / CONFIG_FILE, dump_yaml(config).encode())
        weights.save(folder / WEIGHTS_FILE, student, metadata)
        facts, missing = _programs(config, student, data, folder, onnx)
        card = _card(config, data, size, facts, missing, rows, origin, notes, metadata)
        write_atomically(folder / CARD_FILE, card.encode())
    except OSError as error:
        raise UserError(f"{folder}: the export cannot be written: {error.strerror}") from error
    return Exported(facts, missing)


def _programs(
    config: RunConfig, student: TappedNet, data: DataSet, folder: Path, onnx: bool
) -> tuple[dict[str, float], dict[str, str]]:
    """Make, check and write the programs, each apart from the other; returns facts, and what is missing with why."""
    program = Deployed(student, data.mean, data.std).eval()
    example = torch.zeros(2, data.channels, data.image_size, data.image_size)
    mean, std = torch.tensor(data.mean)[:, None, None], torch.tensor(data.std)[:, None, None]
    answers, labels = _answers(lambda images: student((images - mean) / std), data, config)
    facts, missing = {"val_accuracy": evaluate.accuracy(answers, labels)}, dict[str, str]()
    makers: dict[str, tuple[Callable[[nn.Module, Tensor], tuple[bytes, Program]], str]] = {
        PROGRAM_FILE: (_torch_program, "max_difference"),
        **({ONNX_FILE: (_onnx_program, "onnx_max_difference")} if onnx else {}),
    }
    for name, (make, fact) in makers.items():
        try:
            content, running = make(program, example)
            given, _ = _answers(running, data, config)
            difference = (given - answers).abs().max().item()
            if not difference <= PARITY_TOLERANCE * max(1.0, answers.abs().max().item()):
                raise RunError(f"it differs from the network by {difference:g} in a logit")
        except UserError:  # images that have vanished
            raise
        except ModuleNotFoundError as error:
            missing[name] = f"{error.name} is not installed: pip install 'hksd[onnx]'"
        except Exception as error:  # a stranger's network may do anything, also in the program made of it
            missing[name] = reason(error)
        else:
            facts[fact] = difference
            write_atomically(folder / name, content)
    for name in PROGRAM_FILE, ONNX_FILE:
        if name in missing or name not in makers:  # an older one is of another student
            (folder / name).unlink(missing_ok=True)
    return facts, missing


Program = Callable[[Tensor], Tensor]  # images (N, channels, H, W) on 0..1 -> logits (N, C)


def _torch_program(program: nn.Module, example: Tensor) -> tuple[bytes, Program]:
    """The file of a program of torch.export, and the program that it holds."""
    buffer = io.BytesIO()
    torch.export.save(captured(program, example), buffer)
    return buffer.getvalue(), torch.export.load(io.BytesIO(buffer.getvalue())).module()


def _onnx_program(program: nn.Module, example: Tensor) -> tuple[bytes, Program]:
    """The file of a program in ONNX, and the program that it holds."""
    content = onnx_export.to_onnx(program, example)
    running = onnx_export.session(content)
    return content, lambda images: onnx_export.answers(running, images)


@torch.no_grad()
def _answers(program: Program, data: DataSet, config: RunConfig) -> tuple[Tensor, Tensor]:
    """Logits (N, C) and labels (N,) of the validation split."""
    batches = batches_of(data.validation, data, config.data, torch.device("cpu"), augment=False)
    pairs = [(program(pixels.float() / 255), labels) for pixels, labels in batches.raw(EVALUATION_BATCH)]
    return torch.cat([logits for logits, _ in pairs]), torch.cat([labels for _, labels in pairs])


def _card(
    config: RunConfig,
    data: DataSet,
    size: Size,
    facts: dict[str, float],
    missing: dict[str, str],
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
        *(_torch_use(channels, height) if "max_difference" in facts else []),
        *(_onnx_use(channels, height) if "onnx_max_difference" in facts else []),
        *(f"**`{name}` is missing:** {why}.\n" for name, why in missing.items()),
        *_preparation(config.data, data.image_size, channels),
        f"Classes, in order: {', '.join(data.classes)}. The normalisation is inside the program.",
        "",
        "## Facts",
        "",
        f"- Size: {size.params:,} parameters, {size.mflops:.2f} MFLOPs an image (2 x MACs), "
        f"{size.peak_memory_mb:.3g} MB for an inference (float32, one image). Training-only parts "
        "(adaptors, attention estimators, discriminator) are not in it.",
        f"- Trained for {config.train.epochs} epochs on {len(data.train):,} images, seed {config.seed}, "
        f"with loss terms: {terms}.",
        f"- Validation accuracy {_percent(facts['val_accuracy'])} on {len(data.validation):,} images."
        + (
            f" The exported program differs from the network by at most {facts['max_difference']:.1e} in a logit."
            if "max_difference" in facts
            else ""
        ),
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


def _torch_use(channels: int, height: int) -> list[str]:
    return [
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
    ]


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


def _preparation(config: DataConfig, size: int, channels: int) -> list[str]:
    """How a picture is brought to the network, as evaluation did with those of the data set."""
    code = [
        "import numpy, torch",
        "from PIL import Image, ImageOps",
        'picture = ImageOps.exif_transpose(Image.open("picture.jpg")).convert("RGBA")  # 8 bits a channel',
        f'picture = Image.alpha_composite(Image.new("RGBA", picture.size, "{GROUND}"), picture)',
        f'picture = picture.convert("{"L" if channels == 1 else "RGB"}")',
    ]
    if config.streaming and config.crop_scale:
        short = centre_side(size)
        way = (
            f"its short side resized to {short} pixels, and the middle {size} x {size} cut out (training took random "
            f"parts of at least {config.crop_scale:g} of the area)"
        )
        code += [
            "side = min(picture.size)",
            f"width, height = {short} * picture.width // side, {short} * picture.height // side",
            "picture = picture.resize((width, height), Image.Resampling.BILINEAR)",
            f"left, upper = round((width - {size}) / 2), round((height - {size}) / 2)",
            f"picture = picture.crop((left, upper, left + {size}, upper + {size}))",
        ]
    else:
        way = f"resized to {size} x {size}, whatever its ratio of width to height"
        if config.image_size is None:
            way += " (those of the data set have that size, and were not resized)"
        code.append(f"picture = picture.resize(({size}, {size}), Image.Resampling.BILINEAR)")
    return [
        "## Bring a picture to it (Pillow and numpy)",
        "",
        f"As a viewer shows it: upright by its EXIF orientation, what is transparent on {GROUND}, of 16 bits a channel "
        f"the upper 8, no colour profile applied; {'gray (luma)' if channels == 1 else 'RGB'}; {way}, bilinear with "
        "antialiasing; divided by 255.",
        "",
        "```py",
        *code,
        "pixels = numpy.asarray(picture, numpy.float32) / 255",
        f"images = torch.from_numpy(pixels).reshape(1, {size}, {size}, {channels}).permute(0, 3, 1, 2)",
        "```",
        "",
    ]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"

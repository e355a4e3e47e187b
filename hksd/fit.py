"""`fit`: one distillation run from a configuration, with nothing else running."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Container
from pathlib import Path

from hksd import data as datasets
from hksd.config.run import RunConfig
from hksd.data import DataSet, store
from hksd.device import precision
from hksd.device.device import resolve_device
from hksd.errors import RunError, UserError
from hksd.files import write_atomically
from hksd.models import weights
from hksd.models.look import look as look_at
from hksd.models.size import size_of
from hksd.run import loop
from hksd.run.objective import verify
from hksd.run.outcome import EpochReport, OnEpoch, Result, ShouldStop
from hksd.teacher import prepare as teachers
from hksd.teacher.knowledge import Live
from hksd.teacher.plan import knowledge_of
from hksd.teacher.teacher import Teacher

RESULT_FILE, WEIGHTS_FILE = "result.json", "student.safetensors"


def fit(
    config: RunConfig,
    *,
    data: DataSet | None = None,
    teacher: Teacher | None = None,
    out_dir: Path | None = None,
    on_epoch: OnEpoch | None = None,
    should_stop: ShouldStop | None = None,
    resume: bool = True,
    cache_dir: Path | None = None,
    shared: RunConfig | None = None,
    keep: Container[int] = (),
) -> Result:
    """Distil one student.

    Knows no Ray, no MLflow and no terminal: it reports through `on_epoch`. Deterministic on the CPU for a
    configuration, also after a resume. Never sees the test split.

    Args:
        config: the run.
        data: its images, when the caller has them already.
        teacher: its teacher, when the caller has it already.
        out_dir: folder for checkpoints and, after the last epoch, `student.safetensors` and `result.json`.
        on_epoch: called after every epoch; may return ``"stop"``.
        should_stop: asked after every step, and in long passes over the images; when true, the run is saved where it
            stands and returns, to go on from there.
        resume: continue from the newest whole checkpoint in `out_dir`.
        cache_dir: folder that keeps teachers by content, and what they know of views; decoded images are kept beside it
            (see `hksd.data.store`).
        shared: stands for the other runs of a search, with the same data and teacher: what this run computes of the
            teacher's knowledge is kept for them, with what their terms need.
        keep: numbers of finished epochs whose checkpoint stays in `out_dir` (see `hksd.run.checkpoint.keep`); as the
            `last.ckpt` of another folder it starts a run that differs by later changes alone.

    Raises:
        UserError: wrong paths, data or checkpoints.
        RunError: a loss that is not finite, a teacher that is too weak, a checkpoint that cannot be written.
    """
    if out_dir is not None:
        _probe(out_dir)
    data = data or datasets.load(config.data, store.beside(cache_dir) if cache_dir else None)
    verify(config, **data.image_shape)
    if shared is None:  # a search has looked at all its networks
        look(config, data)
    known = None
    if config.terms.teacher_needs:
        if teacher is None:
            # A run without squeezed vectors takes the estimators along for the others.
            asked = shared if shared is not None and "squeeze" not in config.terms.active() else config
            teacher = teachers.prepare(asked, data, cache_dir=cache_dir)
        known = _knowledge(config, data, teacher, cache_dir, shared)
    result = loop.run(
        config, data, known, out_dir=out_dir, on_epoch=on_epoch, should_stop=should_stop, resume=resume, keep=keep
    )
    if out_dir is not None and not result.stopped:
        path = out_dir / WEIGHTS_FILE
        try:
            weights.save(path, result.student, student_metadata(config, data, result))
            path = out_dir / RESULT_FILE
            write_atomically(path, json.dumps(summary(config, data, result), indent=1).encode())
        except OSError as error:
            raise RunError(f"{path}: the result cannot be written: {error.strerror}") from error
    return result


def look(config: RunConfig, data: DataSet) -> None:
    """Look at networks of one's own as they will be trained (see `hksd.models.look`), before any is.

    Raises:
        UserError: the student or the teacher cannot be trained, or not be asked.
    """
    train = config.train
    look_at(config.student.spec(), data.image_shape, train.device, train.precision, train.batch_size)
    if config.terms.teacher_needs:
        teachers.look(config, data)


def unfinished(folder: Path) -> str | None:
    """What is wrong with the files that `fit` writes into a folder at its end; None where they are there and whole.

    Args:
        folder: `out_dir` of the run.
    """
    try:
        weights.check(folder / WEIGHTS_FILE)
        if "val_accuracy" not in json.loads((folder / RESULT_FILE).read_bytes()):
            return f"{RESULT_FILE} is damaged"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except UserError:
        return f"{WEIGHTS_FILE} is damaged"
    except (ValueError, TypeError):
        return f"{RESULT_FILE} is damaged"
    except OSError as error:
        return f"{Path(error.filename or folder).name}: {error.strerror}"
    return None


def _knowledge(
    config: RunConfig, data: DataSet, teacher: Teacher, cache_dir: Path | None, shared: RunConfig | None
) -> Live:
    """Where the run has its teacher's knowledge from."""
    device = resolve_device(config.train.device)
    folder = cache_dir / teacher.key if cache_dir and teacher.key else None
    how = precision.resolve(config.train.precision, device)
    return knowledge_of(config, data, teacher.to(device), how, folder=folder, shared=shared)


def _probe(folder: Path) -> None:
    """Find out before a long run, not after it, whether the folder can be written."""
    try:
        write_atomically(folder / ".probe", b"")
        (folder / ".probe").unlink()
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror}") from error


def student_metadata(config: RunConfig, data: DataSet, result: Result) -> dict[str, str]:
    """Text metadata of a student's weights file: what one needs to use it."""
    return {
        "format": "hksd student 1",
        "model": config.student.model,
        "width": str(config.student.width),
        "descriptor_dim": json.dumps(config.student.descriptor_dim),
        "taps": json.dumps(config.student.taps),
        "classifier": json.dumps(config.student.classifier),
        **{name: str(value) for name, value in data.image_shape.items() if name != "classes"},
        "classes": json.dumps(data.classes),
        "mean": json.dumps(data.mean),
        "std": json.dumps(data.std),
        "config_hash": result.config_hash,
        "data_fingerprint": result.data_fingerprint,
    }


def summary(config: RunConfig, data: DataSet, result: Result) -> dict[str, object]:
    """The outcome of a run as plain values, for `result.json` and ``--json``."""
    size = size_of(config.student.spec(), **data.image_shape)
    last: EpochReport = result.history[-1]
    return {
        "val_accuracy": result.val_accuracy,
        "val_loss": last.val_loss,
        "params": size.params,
        "mflops": size.mflops,
        "epochs": len(result.history),
        "seconds": result.seconds,
        "resumed_at": result.resumed_at,
        "resumed_step": result.resumed_step,
        "stopped": result.stopped,
        "config_hash": result.config_hash,
        "data_fingerprint": result.data_fingerprint,
        "precision": result.precision,
        "validation_images": len(data.validation),
        "history": [dataclasses.asdict(report) for report in result.history],
    }

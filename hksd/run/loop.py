"""The training loop: one network, one objective, checkpoints, a guard against NaN.

Resume rules, in order:
1. A finished epoch is checkpointed before it is reported; what was reported can be resumed from.
2. The newest whole checkpoint of the folder counts; damaged ones are moved aside.
3. A checkpoint of another configuration or of other data is an error, never overwritten. What counts is the
   configuration up to there: a run may begin with the checkpoint of one that differs by later changes alone.
4. Batch order and views are functions of (seed, epoch); the state of torch's generator is restored. On the CPU a
   resumed run therefore ends with bit-identical weights.
5. A run whose last epoch is checkpointed is not trained again.
6. On a resume the last finished epoch is reported again, since the process may have died between checkpoint and report.
7. A run that is asked to stop inside an epoch is checkpointed after the step, with what the epoch has gathered, and
   goes on from the next step: rule 4 holds there too.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from hksd import models, provenance
from hksd.config.run import RunConfig, config_hash, dump_yaml, history_hash
from hksd.config.train import TrainConfig, learning_rate
from hksd.data import DataSet
from hksd.data.augment import Batch, Batches, batches_of
from hksd.device import memory, precision
from hksd.device.device import isolated, resolve_device
from hksd.errors import NonFiniteLossError, UserError
from hksd.files import write_atomically
from hksd.models import user
from hksd.models.taps import Out, TappedNet
from hksd.run import checkpoint, evaluate
from hksd.run.evaluate import EVALUATION_BATCH
from hksd.run.modes import Modes
from hksd.run.objective import Objective
from hksd.run.outcome import EpochReport, OnEpoch, Result, ShouldStop
from hksd.run.tally import LeftEpoch, Tally
from hksd.terms.base import Setting

CONFIG_FILE = "config.yaml"
GPU_GUARD_STEPS = 25  # on a GPU the loss is looked at this often, since each look waits for the device

log = logging.getLogger(__name__)


class TeacherSource(Protocol):
    """Where the loop has its teacher's knowledge from (see `hksd.teacher.knowledge`)."""

    @property
    def model(self) -> TappedNet:
        """The network."""

    def begin(self, epoch: int, batches: Batches) -> None:
        """Get ready for an epoch (from 0) over `batches`."""

    def known(self, batch: Batch) -> Out:
        """What the teacher knows of a batch of the epoch."""

    def look(self, images: Tensor) -> Out:
        """What the teacher says about any images (N, channels, H, W)."""


def run(
    config: RunConfig,
    data: DataSet,
    teacher: TeacherSource | None,
    *,
    out_dir: Path | None = None,
    on_epoch: OnEpoch | None = None,
    should_stop: ShouldStop | None = None,
    resume: bool = True,
    keep: Container[int] = (),
) -> Result:
    """Train `config.student` under `config.terms`; see `hksd.fit.fit`, which prepares the arguments."""
    device = resolve_device(config.train.device)
    memory.keep_freed_memory()
    with (
        isolated(config.seed, config.train.threads, device),
        precision.resolve(config.train.precision, device).matmul(),
    ):
        loop = _Loop(config, data, teacher, device, out_dir, should_stop or (lambda: False))
        if out_dir is not None and resume:
            loop.resume()
        loop.note_config()
        return loop.train(on_epoch, keep)


class _Loop:
    def __init__(
        self,
        config: RunConfig,
        data: DataSet,
        teacher: TeacherSource | None,
        device: torch.device,
        out_dir: Path | None,
        should_stop: ShouldStop,
    ):
        self.config, self.data, self.teacher, self.device, self.out_dir = config, data, teacher, device, out_dir
        self.should_stop = should_stop
        self.foreign = user.is_user(config.student.model)  # ours and torchvision's networks give logits
        self.student = models.make(config.student.spec(), **data.image_shape).to(device)
        asked, shape = config.train.precision, {"in_channels": data.channels, "image_size": data.image_size}
        self.precision = precision.suited(precision.resolve(asked, device), asked, self.student, **shape)
        memory.lay_out(self.student, self.student.layout)
        network = teacher.model if teacher else None
        shapes = network.shapes if network else None
        self.objective = Objective(config.terms, self.student.shapes, shapes, config.train.epochs)
        self.objective.meet(Setting(torch.from_numpy(data.train.labels.copy()), network))
        self.objective.to(device)
        self.parameters = [*self.student.parameters(), *self.objective.joint_parameters()]
        train = config.train
        self.optimizer = torch.optim.SGD(
            self.parameters,
            lr=train.lr,
            momentum=train.momentum,
            nesterov=train.nesterov,
            foreach=True,
            weight_decay=train.weight_decay,
        )
        self.batches = batches_of(data.train, data, config.data, device, augment=True)
        self.validation = batches_of(data.validation, data, config.data, device, augment=False)
        for passes in (self.batches, self.validation):  # those of a teacher over a view, and of the validation
            passes.before_batch = self.poll
        self.modes = Modes.of(config, data, self.student, network, device)
        self.history: list[EpochReport] = []
        self.tally: Tally | None = None  # of the epoch under way

    def resume(self) -> None:
        assert self.out_dir is not None
        state = checkpoint.load_newest(self.out_dir)
        if state is None:
            return
        self.history = [EpochReport(**report) for report in state["history"]]
        self.tally = Tally(self.device, state["tally"]) if state.get("tally") else None
        for what, mine in self.identity().items():
            if state["identity"][what] != mine:
                raise UserError(
                    f"{self.out_dir}: holds a checkpoint of other {'settings' if what == 'config' else 'data'} "
                    f"({state['identity'][what]}, now {mine}); choose another folder or remove it"
                )
        self.student.load_state_dict(state["student"])
        self.objective.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.modes.load_state_dict(state["modes"])
        torch.set_rng_state(state["rng"])
        if self.device.type == "cuda" and state["cuda_rng"] is not None:
            torch.cuda.set_rng_state(state["cuda_rng"], self.device)

    def identity(self) -> dict[str, str]:
        """What a checkpoint made now belongs to."""
        begun = len(self.history) + (self.tally is not None)
        return {"config": history_hash(self.config, begun), "data": self.data.fingerprint}

    def note_config(self) -> None:
        """Put configuration and provenance beside the checkpoints, once it is clear that they belong to it."""
        if self.out_dir is None:
            return
        try:
            write_atomically(self.out_dir / CONFIG_FILE, dump_yaml(self.config).encode())
            if len(self.history) < self.config.train.epochs:
                place = {"epochs": len(self.history), "steps": self.step}
                how = {"device": str(self.device), "precision": self.precision.reason}
                provenance.note(
                    self.out_dir, provenance.describe_run(self.config, self.data), {"begins_after": place, **how}
                )
        except OSError as error:
            raise UserError(f"{self.out_dir}: cannot be written: {error.strerror}") from error

    def save(self) -> None:
        if self.out_dir is None:
            return
        checkpoint.save(
            self.out_dir,
            {
                "identity": self.identity(),
                "student": self.student.state_dict(),
                "objective": self.objective.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "modes": self.modes.state_dict(),
                "rng": torch.get_rng_state(),
                "cuda_rng": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
                "history": [dataclasses.asdict(report) for report in self.history],
                "tally": self.tally.state_dict() if self.tally else None,
            },
        )

    def train(self, on_epoch: OnEpoch | None, keep: Container[int]) -> Result:
        epochs, resumed_at, resumed_step = self.config.train.epochs, len(self.history), self.step
        tell = on_epoch or (lambda _: None)
        if resumed_at and not self.tally:
            self.keep(keep)  # again, since the process may have died between checkpoint and this
        stopped = resumed_at > 0 and tell(self.history[-1]) == "stop" and resumed_at < epochs
        try:
            while len(self.history) < epochs and not stopped:
                self.poll()
                self.history.append(self.epoch(len(self.history)))
                self.tally = None
                self.save()
                self.keep(keep)
                stopped = tell(self.history[-1]) == "stop" and len(self.history) < epochs
        except LeftEpoch:
            stopped = True
            if self.step > (resumed_step if len(self.history) == resumed_at else 0):
                self.save()
        memory.lay_out(self.student, torch.contiguous_format)
        return Result(
            self.student.cpu().eval(),
            tuple(self.history),
            config_hash(self.config),
            self.data.fingerprint,
            stopped,
            resumed_at,
            sum(report.seconds for report in self.history) + (self.tally.seconds if self.tally else 0.0),
            self.precision.reason,
            step=self.step,
            resumed_step=resumed_step,
        )

    def keep(self, keep: Container[int]) -> None:
        if self.out_dir is not None and len(self.history) in keep:
            checkpoint.keep(self.out_dir, len(self.history))

    @property
    def step(self) -> int:
        """Finished steps of the epoch under way; 0 between epochs."""
        return self.tally.steps if self.tally else 0

    def poll(self) -> None:
        if self.should_stop():
            raise LeftEpoch

    def epoch(self, epoch: int) -> EpochReport:
        now, modes = self.config.at(epoch), self.modes
        self.objective.adopt(now.terms)
        for group in self.optimizer.param_groups:
            group.update({knob: getattr(now.train, knob) for knob in ("momentum", "nesterov", "weight_decay")})
        self.tally = tally = self.tally or Tally(self.device)
        with tally.waiting():
            if self.teacher:
                self.teacher.begin(epoch, self.batches)
        self.student.train()
        self.objective.train()
        if modes.prune:
            modes.prune.begin(epoch)
        steps = self.steps()
        for batch in self.source(epoch, tally.steps):
            self.learn(batch, now.train, epoch, steps, tally)
            self.poll()
        means, speed = tally.means() | modes.scalars(), tally.images_per_s()
        logits, labels = evaluate.predict(self.student, self.validation.plain(EVALUATION_BATCH))
        if self.foreign and epoch == 0 and evaluate.kind_of(logits) == "probabilities":
            log.warning(
                "%s %s in eval mode: its validation loss is wrong, and a student gives them where logits are expected; "
                "let it return logits in both modes",
                self.config.student.model,
                evaluate.NORMALISED,
            )
        if modes.robust and modes.robust.wanted(epoch, now.train.epochs):
            means["robust/val_accuracy"] = modes.robust.accuracy(self.student, self.validation, EVALUATION_BATCH)
        scores = evaluate.accuracy(logits, labels), F.cross_entropy(logits, labels).item()
        return tally.report(epoch, now.train.epochs, means, speed, *scores)

    def learn(self, batch: Batch, train: TrainConfig, epoch: int, steps: int, tally: Tally) -> None:
        """Take one step of an epoch of `steps` steps."""
        progress = epoch + tally.steps / steps
        lr = learning_rate(train, progress / train.epochs)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        with self.precision.autocast():
            out, known = self.look(batch, progress)
        if self.foreign and epoch == tally.steps == 0:
            evaluate.refuse_probabilities(out.logits, self.config.student.model)
        with self.precision.autocast(fixed_weights=False):  # terms train their own parts here
            tally.add(self.objective.own_steps(out, known, batch.labels, progress))
            total, values = self.objective(out, known, batch.labels, progress)
        if self.device.type == "cpu" or tally.steps % GPU_GUARD_STEPS == 0:
            self.guard(total, values, epoch, tally.steps)
        self.optimizer.zero_grad(set_to_none=True)
        if total.requires_grad:  # not while the ramps of all terms are at 0
            total.backward()
        if train.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, train.clip_norm)
        self.optimizer.step()
        if self.modes.prune:
            self.modes.prune.step(lr)
        tally.add({"total": total.detach(), **values})
        tally.step(out.logits, batch.labels, lr)

    def steps(self) -> int:
        """Student steps of an epoch."""
        free = self.config.data_free
        return free.steps_per_epoch if free else self.batches.steps(self.config.train.batch_size)

    def source(self, epoch: int, start: int) -> Iterator[Batch]:
        """Batches of one epoch from step `start` on: real, or generated."""
        size = self.config.train.batch_size
        if self.modes.generated:
            return self.modes.generated.batches(epoch, size, start)
        return self.batches.augmented(epoch, size, self.config.seed, epoch % self.config.views(), start)

    def look(self, batch: Batch, progress: float) -> tuple[Out, Out | None]:
        """Show a batch, attacked where the run is robust, to the student and to the teacher."""

        def ask_student(images: Tensor) -> Out:
            return dataclasses.replace(self.student.taps(images).widened(), images=images, index=batch.index)

        robust, teacher = self.modes.robust, self.teacher
        known = teacher.known(batch) if teacher else None
        if robust is None:
            return ask_student(batch.images), known

        def loss(images: Tensor) -> Tensor:
            out = ask_student(images)
            if robust.config.attack == "ce":
                return F.cross_entropy(out.logits, batch.labels)
            total = self.objective(out, known, batch.labels, progress)[0]
            return total if total.requires_grad else F.cross_entropy(out.logits, batch.labels)

        attacked = robust.attack(self.student, batch.images, loss, robust.config.steps)
        if teacher and robust.config.teacher_view == "attacked":
            known = teacher.look(attacked)
        return ask_student(attacked), known

    @staticmethod
    def guard(total: Tensor, values: dict[str, Tensor], epoch: int, step: int) -> None:
        if not math.isfinite(total.item()):
            raise NonFiniteLossError(epoch + 1, step + 1, {name: value.item() for name, value in values.items()})

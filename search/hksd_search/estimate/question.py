"""What an estimate is asked: the machine, and the runs that stand for those of a search."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from hksd import data as datasets
from hksd.config.networks import StudentConfig
from hksd.config.run import RunConfig
from hksd.data import DataSet
from hksd.errors import UserError
from hksd.models.size import size_of
from hksd.teacher import prepare as teachers
from hksd.teacher.plan import live_because
from hksd_search.backend import connect, packing
from hksd_search.estimate import dry_run
from hksd_search.estimate.forecast import Work
from hksd_search.session import IMAGES, TEACHERS
from hksd_search.space.arms import Competitors
from hksd_search.space.networks import look_at_networks
from hksd_search.space.preview import check_knowledge, random_draws
from hksd_search.space.sizes import Meter, check_feasible, within
from hksd_search.space.space import Space
from hksd_search.teaching import with_teacher

DRAWN = 200  # random draws that the forecast is averaged over
MEASURED = 12  # draws that the dry run trains for some steps


@dataclass(frozen=True)
class Machine:
    """What a search would run on.

    Attributes:
        cpus: processor cores.
        gpus: GPUs.
        address: Ray cluster; None is this machine.
    """

    cpus: int
    gpus: float
    address: str | None = None


@dataclass(frozen=True)
class Question:
    """What is to be forecast.

    Attributes:
        space: what would be searched.
        machine: what it would run on.
        runs: folder of cached teachers.
        data: the images.
        middle: the run in the middle of the space.
        meter: measures students.
        largest: the largest student.
        groups: spaces whose trials are compared with each other.
        arms: runs of the arms.
        drawn: draws that the forecast is averaged over.
        chosen: runs that are measured, the arms first.
        taught: runs for which a teacher is made.
        missing: what of it is not cached.
    """

    space: Space
    machine: Machine
    runs: Path
    data: DataSet
    middle: RunConfig
    meter: Meter
    largest: StudentConfig
    groups: int
    arms: list[RunConfig]
    drawn: list[RunConfig]
    chosen: list[RunConfig]
    taught: list[RunConfig]
    missing: tuple[str, ...]

    def work(self, run: RunConfig) -> Work:
        """What makes a step of a run long, on all images."""
        return _work(run, self.meter, len(self.data.train))


def ask(space: Space, machine: Machine, runs: Path) -> Question:
    """Draw the runs that stand for a search.

    Args:
        space: what would be searched.
        machine: what it would run on.
        runs: folder of cached teachers and images.

    Raises:
        UserError: wrong data, limits, resources, or no draw makes a valid run.
    """
    middle = space.middle({})
    data = datasets.load(middle.data, runs / IMAGES)
    shape = data.image_shape
    meter = Meter(shape)
    largest = check_feasible(space, meter)
    look_at_networks(space, data, meter, largest)
    check_knowledge(space, shape)
    competitors = Competitors(space, largest, shape["image_size"])
    arms = list(competitors.published.values())[: space.search.trials]
    if not machine.gpus:
        packing.trials_at_once(space.search, 0.0, machine.cpus, 0.0)  # a fault comes before the measuring
    drawn = [run for one in competitors.spaces.values() for run in feasible_draws(one, meter)]
    taught = with_teacher(arms, middle)
    absent = {file: part for run in taught for file, part in teachers.missing(run, data, runs / TEACHERS).items()}
    return Question(
        space=space,
        machine=machine,
        runs=runs,
        data=data,
        middle=middle,
        meter=meter,
        largest=largest,
        groups=len(competitors.spaces),
        arms=arms,
        drawn=drawn,
        chosen=[*arms, *spread(drawn, meter, MEASURED)],
        taught=taught,
        missing=tuple(sorted(absent.values(), reverse=True)),
    )


def feasible_draws(space: Space, meter: Meter) -> list[RunConfig]:
    """Random draws within the limits.

    Raises:
        UserError: there is none.
    """
    drawn = [run for run in random_draws(space, DRAWN) if not within(space.search.limits, meter.costs(run.student))]
    if not drawn:
        raise UserError(f"{space.source}: no random draw of this space makes a valid run within the limits")
    return drawn


def spread(drawn: Sequence[RunConfig], meter: Meter, count: int) -> list[RunConfig]:
    """Some of the draws, at even distances in the order of their MFLOPs."""
    ordered = sorted(drawn, key=lambda run: meter.costs(run.student)["mflops"])
    count = min(count, len(ordered))
    return [ordered[int((at + 0.5) * len(ordered) / count)] for at in range(count)]


def machine_here(address: str | None, cpus: int | None, gpus: int | None) -> Machine:
    """What a search would run on: this machine, or a cluster, with other numbers where they are given.

    Raises:
        UserError: there is no cluster, or a GPU is asked for and there is none to measure on.
    """
    if address is None:
        have = Machine(len(os.sched_getaffinity(0)), torch.cuda.device_count())
    else:
        connect.prepare(address)
        import ray

        connect.start_ray(address)
        resources = ray.cluster_resources()
        have = Machine(int(resources.get("CPU", 0)), resources.get("GPU", 0.0), address)
    if gpus and not have.gpus:
        raise UserError(f"--gpus {gpus}: there is no GPU here to measure on; run the estimate where there is one")
    return replace(have, cpus=cpus or have.cpus, gpus=have.gpus if gpus is None else gpus)


def _work(run: RunConfig, meter: Meter, images: int) -> Work:
    """What makes a step of a run long."""
    active = run.terms.active()
    needs = run.teacher is not None and run.terms.teacher_needs
    live = bool(needs) and (run.train.knowledge == "live" or bool(live_because(run, **meter.shape)))
    teacher = size_of(run.teacher.spec(), **meter.shape).mflops if live and run.teacher is not None else 0.0
    return Work(
        images=run.train.batch_size,
        student=meter.costs(run.student)["mflops"],
        teacher=teacher,
        terms=sum(bool(term.teacher_needs) for term in active.values()),
        steps=run.data_free.steps_per_epoch if run.data_free else dry_run.steps(images, run.train.batch_size),
    )

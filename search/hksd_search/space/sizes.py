"""What a student costs, known before it is trained: objectives and limits of a search, and its largest student."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from hksd.config.networks import StudentConfig, TeacherConfig
from hksd.errors import UserError
from hksd.models.size import size_of
from hksd.schema import build
from hksd_search.space.latency import Latencies
from hksd_search.space.ranges import evenly
from hksd_search.space.settings import Limits, shown
from hksd_search.space.space import Space

BISECTION_SHARE = 1e-4  # of a range: finer than any change of a channel count
MEASURED = 64  # latencies at most that are measured to find the largest student, or ahead of the trials
HALVINGS = 6  # of the way from the smallest to the largest student of a combination, when latency limits it
Costs = dict[str, float]  # by the names in `hksd_search.space.settings.REPORTED`
T = TypeVar("T")


class Meter:
    """Measures networks for images of one shape.

    Args:
        shape: `in_channels`, `classes` and `image_size` of the data.
        latencies: measures latency as well; None where nobody asks for it.
        limits: a network whose size breaks them already is not measured for its latency.
    """

    def __init__(self, shape: Mapping[str, int], latencies: Latencies | None = None, limits: Limits | None = None):
        self.shape, self.latencies, self.limits = dict(shape), latencies, limits or Limits()

    def sizes(self, network: StudentConfig | TeacherConfig) -> Costs:
        """Costs of a network that follow from its shapes alone.

        Raises:
            UserError: it cannot be built for such images.
        """
        size = size_of(network.spec(), **self.shape)
        return {"params": size.params, "mflops": size.mflops, "peak_memory_mb": size.peak_memory_mb}

    def costs(self, network: StudentConfig | TeacherConfig) -> Costs:
        """Costs of a network by name; with its latency, if that is asked for and its size is within the limits.

        Raises:
            UserError: it cannot be built for such images, or not be measured.
        """
        sizes = self.sizes(network)
        if self.latencies is None or within(self.limits, sizes):
            return sizes
        measured = self.latencies.get(network)
        return {**sizes, "latency_ms": measured.median_ms, "latency_p95_ms": measured.p95_ms}


def within(limits: Limits, costs: Mapping[str, float]) -> list[str]:
    """The limits that a student of these costs breaks, in words; empty when it keeps all on costs that are known."""
    bounds = {name: bound for name, bound in limits.bounds().items() if name in costs and costs[name] > bound}
    return [f"{name} {shown(name, costs[name])} > {bound:g}" for name, bound in bounds.items()]


def measure_ahead(space: Space, meter: Meter, progress: Callable[[str, int, int], None]) -> None:
    """Measure the latency of every student, where there are few, while the machine has nothing else to do.

    Args:
        space: the space.
        meter: measures its students.
        progress: told what is done, how much of it, and of how much.
    """
    students = _students(space) if meter.latencies else []
    for done, student in enumerate(students, 1):
        meter.costs(student)
        progress("measuring latency", done, len(students))


def _students(space: Space) -> list[StudentConfig]:
    """All students of a space that has no range of numbers for them and at most `MEASURED`; else none."""
    if any(_numbers(space)):
        return []
    found = [build(StudentConfig, section, space.source) for section in space.smallest_students()]
    return found if len(found) <= MEASURED else []


def _numbers(space: Space) -> list[str]:
    """Keys of the `student` section that have a range of numbers."""
    return [
        str(key)
        for key in space.tree["student"]
        if ("student", key) in space.ranges and space.ranges[("student", key)].kind != "choice"
    ]


def check_feasible(space: Space, meter: Meter) -> StudentConfig:
    """Return the largest student of the space within its limits.

    Sizes rise with every number of the `student` section, so the low ends decide whether anything fits, and each
    combination of choices is grown from there by bisection, one number after the other. A limit on latency then takes
    what was grown back, all numbers together; of more combinations than can be measured, some at even distances in
    size are.

    Args:
        space: the space.
        meter: measures its students.

    Raises:
        UserError: no student is within the limits; says which limit is impossible and the smallest cost reachable.
    """
    limits = space.search.limits

    def student(section: Mapping[str, Any]) -> StudentConfig:
        return build(StudentConfig, section, space.source)

    def fits(section: Mapping[str, Any]) -> bool:
        return not within(limits, meter.sizes(student(section)))

    def quick(section: Mapping[str, Any]) -> bool:
        return not within(limits, meter.costs(student(section)))

    def order(section: Mapping[str, Any]) -> tuple[float, float]:
        sizes = meter.sizes(student(section))
        return sizes["params"], sizes["mflops"]

    smallest = list(space.smallest_students())
    grown = [(low, _grow(low, space, fits)) for low in smallest if fits(low)]
    grown.sort(key=lambda pair: order(_at(pair[0], pair[1], space)), reverse=True)
    if limits.latency_ms is None or meter.latencies is None:
        if grown:
            return student(_at(*grown[0], space))
        raise _impossible(space, meter, [student(low) for low in smallest], [])
    tried = evenly(grown, MEASURED // (HALVINGS + 2) if _numbers(space) else MEASURED)
    best: dict[str, Any] | None = None
    for low, shares in tried:
        if best is not None and order(_at(low, shares, space)) <= order(best):
            break  # nor are those that follow any larger
        section = _shrink(low, shares, space, quick)
        if section is not None and (best is None or order(section) > order(best)):
            best = section
    if best is None:
        raise _impossible(space, meter, [student(low) for low in smallest], [student(low) for low, _ in tried])
    return student(best)


def _impossible(
    space: Space, meter: Meter, smallest: Sequence[StudentConfig], measured: Sequence[StudentConfig]
) -> UserError:
    """The error of a space without a student within its limits; latencies are known of those `measured`."""
    lines = []
    for name, limit in space.search.limits.bounds().items():
        costs = [meter.costs(student) for student in measured] if name == "latency_ms" else map(meter.sizes, smallest)
        known = list(zip(measured if name == "latency_ms" else smallest, costs, strict=True))
        if not known:
            continue
        student, least = min(((student, cost[name]) for student, cost in known), key=lambda pair: pair[1])
        verdict = "impossible" if least > limit else "possible alone"
        lines.append(
            f"limits.{name} = {limit:g} is {verdict}: the smallest reachable is {least:g} "
            f"({student.model}, width {student.width:g})"
        )
    return UserError(
        f"{space.source}: search.limits: no student of this space is within the limits; {'; '.join(lines)}"
    )


def _at(low: Mapping[str, Any], shares: Mapping[str, float], space: Space) -> dict[str, Any]:
    """The `student` section `low` with numbers at these shares of their ranges."""
    return {**low, **{key: space.ranges[("student", key)].at(share) for key, share in shares.items()}}


def _grow(low: Mapping[str, Any], space: Space, fits: Callable[[Mapping[str, Any]], bool]) -> dict[str, float]:
    """Raise every number of a `student` section as far as it fits; returns the shares of the ranges."""
    shares: dict[str, float] = {}
    for key in _numbers(space):
        bottom, top = 0.0, 1.0
        if fits(_at(low, {**shares, key: 1.0}, space)):
            bottom = 1.0
        while top - bottom > BISECTION_SHARE and bottom < 1.0:
            middle = (bottom + top) / 2
            bottom, top = (middle, top) if fits(_at(low, {**shares, key: middle}, space)) else (bottom, middle)
        shares[key] = bottom
    return shares


def _shrink(
    low: Mapping[str, Any], shares: Mapping[str, float], space: Space, quick: Callable[[Mapping[str, Any]], bool]
) -> dict[str, Any] | None:
    """Take numbers back, all by the same part, until the student is quick enough; None where it is not even at `low`.

    Measures at most `HALVINGS` + 2 students.
    """

    def at(part: float) -> dict[str, Any]:
        return _at(low, {key: part * share for key, share in shares.items()}, space)

    if quick(at(1.0)):
        return at(1.0)
    if not shares or not quick(at(0.0)):
        return None
    bottom, top = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (bottom + top) / 2
        bottom, top = (middle, top) if quick(at(middle)) else (bottom, middle)
    return at(bottom)

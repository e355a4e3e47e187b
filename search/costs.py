"""What a student costs, known before it is trained: objectives and limits of a search, and its largest student."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hksd import budget
from hksd.config import StudentConfig, TeacherConfig
from hksd.errors import UserError
from hksd.schema import build
from search.settings import Limits
from search.space import Space

BISECTION_SHARE = 1e-4  # of a range: finer than any change of a channel count
Costs = dict[str, float]  # by the names in `search.settings.COSTS`


class Meter:
    """Measures networks for images of one shape.

    Args:
        shape: `in_channels`, `classes` and `image_size` of the data.
    """

    def __init__(self, shape: Mapping[str, int]):
        self.shape = dict(shape)

    def costs(self, network: StudentConfig | TeacherConfig) -> Costs:
        """Costs of a network by name.

        Raises:
            UserError: it cannot be built for such images.
        """
        size = budget.size(network, **self.shape)
        return {"params": size.params, "mflops": size.mflops}


def shown(name: str, value: float) -> str:
    """A cost as people read it: parameters are whole."""
    return f"{value:.0f}" if name == "params" else f"{value:.3g}"


def within(limits: Limits, costs: Mapping[str, float]) -> list[str]:
    """The limits that a student of these costs breaks, in words; empty when it keeps them all."""
    bounds = {name: bound for name, bound in limits.bounds().items() if costs[name] > bound}
    return [f"{name} {shown(name, costs[name])} > {bound:g}" for name, bound in bounds.items()]


def check_feasible(space: Space, meter: Meter) -> StudentConfig:
    """Return the largest student of the space within its limits.

    Sizes rise with every number of the `student` section, so the low ends decide whether anything fits, and each
    combination of choices is grown from there by bisection, one number after the other.

    Args:
        space: the space.
        meter: measures its students.

    Raises:
        UserError: no student is within the limits; says which limit is impossible and the smallest cost reachable.
    """

    def measure(section: Mapping[str, Any]) -> tuple[StudentConfig, Costs]:
        student = build(StudentConfig, section, space.source)
        return student, meter.costs(student)

    def fits(section: Mapping[str, Any]) -> bool:
        return not within(space.search.limits, measure(section)[1])

    smallest = list(space.smallest_students())
    grown = [measure(_grow(section, space, fits)) for section in smallest if fits(section)]
    if grown:
        return max(grown, key=lambda pair: (pair[1]["params"], pair[1]["mflops"]))[0]
    sized, lines = [measure(section) for section in smallest], []
    for name, limit in space.search.limits.bounds().items():
        student, costs = min(sized, key=lambda pair: pair[1][name])
        verdict = "impossible" if costs[name] > limit else "possible alone"
        lines.append(
            f"limits.{name} = {limit:g} is {verdict}: the smallest reachable is {costs[name]:g} "
            f"({student.model}, width {student.width:g})"
        )
    raise UserError(f"{space.source}: search.limits: no student of this space is within the limits; {'; '.join(lines)}")


def _grow(section: dict[str, Any], space: Space, fits: Callable[[Mapping[str, Any]], bool]) -> dict[str, Any]:
    """Raise every number of a `student` section as far as it fits."""
    for key in section:
        spread = space.ranges.get(("student", key))
        if spread is None or spread.kind == "choice":
            continue
        low, high = 0.0, 1.0
        if fits({**section, key: spread.at(1.0)}):
            low = 1.0
        while high - low > BISECTION_SHARE and low < 1.0:
            middle = (low + high) / 2
            low, high = (middle, high) if fits({**section, key: spread.at(middle)}) else (low, middle)
        section = {**section, key: spread.at(low)}
    return section

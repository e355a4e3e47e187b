"""From terms to one loss: weights, ramps, and the value of each term for the log."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hksd import models
from hksd.config.run import RunConfig, Terms
from hksd.device import process
from hksd.models import NetworkSpec
from hksd.models.taps import Out, TapShapes
from hksd.terms import Term
from hksd.terms.base import Setting


def verify(config: RunConfig, *, in_channels: int, classes: int, image_size: int) -> None:
    """Check, without memory or time, that the terms of a run fit its two networks.

    Raises:
        UserError: a network cannot be built for the data, or a term cannot work with them; says which and why.
    """
    image = in_channels, classes, image_size
    student = _shapes(config.student.spec(), *image)
    teacher = _shapes(config.teacher.spec(), *image) if config.teacher else None
    with torch.device("meta"):
        Objective(config.terms, student, teacher, config.train.epochs)


@functools.cache  # a search asks for the same few networks at every draw
def _shapes(spec: NetworkSpec, in_channels: int, classes: int, image_size: int) -> TapShapes:
    with process.restored(0):  # what a user's network sets while it is built
        return models.sketch(spec, in_channels=in_channels, classes=classes, image_size=image_size).shapes


class Objective(nn.Module):
    """The active terms of a run with their state.

    Args:
        terms: configuration; terms of weight 0 are not built.
        student: shapes of the student.
        teacher: shapes of the teacher, or None when no term needs one.
        epochs: length of the run, for ramps.
    """

    def __init__(self, terms: Terms, student: TapShapes, teacher: TapShapes | None, epochs: int):
        super().__init__()
        self.configs, self.epochs = terms.active(), epochs
        built: dict[str, Term] = {}
        for name, config in self.configs.items():
            built[name] = config.build_beside(student, teacher, built)
        self.terms = nn.ModuleDict(built)
        self.teacher_needs = terms.teacher_needs

    def adopt(self, terms: Terms) -> None:
        """Go on with other weights of the same terms."""
        self.configs = {name: terms[name] for name in self.configs}

    def meet(self, setting: Setting) -> None:
        """Tell every term what the run is made of (see `Term.meet`)."""
        for term in self._terms().values():
            term.meet(setting)

    def joint_parameters(self) -> list[nn.Parameter]:
        """Parameters of the terms that are optimised together with the student."""
        return [p for term in self._terms().values() for p in term.joint_parameters()]

    def own_steps(self, student: Out, teacher: Out | None, target: Tensor, epoch: float) -> dict[str, Tensor]:
        """Let every term train its own part (see `Term.own_step`), while its schedule runs."""
        values: dict[str, Tensor] = {}
        for name, term in self._terms().items():
            if self.configs[name].weight > 0 and self.configs[name].runs(epoch, self.epochs):
                scalars = term.own_step(student, teacher, target)
                values.update({f"{name}/{key}": value for key, value in scalars.items()})
        return values

    def forward(
        self, student: Out, teacher: Out | None, target: Tensor, epoch: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss.

        Args:
            student: taps with gradients.
            teacher: taps without gradients, or None.
            target: labels (N,).
            epoch: fractional epoch, from 0.

        Returns:
            The weighted sum, and the unweighted value of every term, detached.
        """
        total = torch.zeros((), device=target.device)
        values: dict[str, Tensor] = {}
        for name, term in self._terms().items():
            weight = self.configs[name].weight * self.configs[name].factor(epoch, self.epochs)
            if weight > 0:
                value = term(student, teacher, target)
                total = total + weight * value
                values[name] = value.detach()
        return total, values

    def _terms(self) -> Mapping[str, Term]:
        return self.terms  # type: ignore[return-value]

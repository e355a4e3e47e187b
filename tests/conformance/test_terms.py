"""What every loss term must keep to. A term is tested here as soon as it stands in the registry."""

from __future__ import annotations

import copy
import dataclasses
import functools
import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from hksd import models
from hksd.attention import HierarchicalAttention
from hksd.config.run import Terms
from hksd.models.taps import Out, TapShapes
from hksd.run.objective import Objective
from hksd.teacher.teacher import Teacher
from hksd.terms import TERMS, Term, TermConfig
from hksd.terms.base import Setting
from hksd.terms.squeeze import SqueezeConfig

MakeTaps = Callable[..., tuple[TapShapes, Out]]
EPOCHS, LATE = 40, 20.0  # an epoch at which every ramp is up
IMAGES = 40  # of the training split of the cases; more than a batch has

# Further forms of terms that have several; the defaults of every registered term are tested without an entry here.
FORMS: dict[str, list[dict[str, Any]]] = {
    "ce": [{"label_smoothing": 0.1}],
    "squeeze": [
        {"depth": 1},
        {"depth": 3, "levels": "all"},
        {"compatibility": "gap"},
        {"metric": "smooth_l1", "normalize": False},
        {"compatibility": "additive_linear", "attend": "fused", "pool": "mean", "depth": 1},
        {"share_query": False},
        {"compatibility": "additive_tanh", "blocks": 1, "metric": "cosine"},
        {"task_weight": 0.5},
    ],
    "adversarial": [
        {"loss": "hinge"},
        {"loss": "least_squares", "optimizer": "sgd"},
        {"student_dropout": 0.3, "batch_norm": False},
        {"category_weight": 0.0, "steps": 2},
        {"input": "embedding"},
        {"input": "descriptor"},
        {"every": 2},
    ],
    "kd": [{"standardize": True, "temperature": 2.0}],
    "dkd": [{"alpha": 0.5, "beta": 8.0, "temperature": 1.0}],
    "dist": [{"temperature": 1.0}, {"beta": 0.0}],
    "mlkd": [{"temperatures": (1.0,), "batch_weight": 0.0}],
    "attention_transfer": [{"p": 1.0}, {"stages": 1}],
    "fitnet": [{"adaptor": "needed"}, {"stage": 1}],
    "fsp": [{"stages": 2}],
    "nst": [{"stages": 1}],
    "rkd": [{"distance_weight": 0.0}, {"angle_weight": 0.0}],
    "vid": [{"stages": 1, "initial_variance": 0.1}],
    "correlation": [{"dims": None}],
    "review": [{"embedding": True}, {"stages": 2, "channels": 8}],
    "crd": [{"negatives": 4, "dims": 8}, {"temperature": 0.01, "momentum": 0.0}],
    "knowledge_representing": [
        {"aggregate": "mean_std", "power": 2},
        {"penalty": "gate", "neighbours": 1, "kappa": 1.0},
        {"stages": 1, "drops": (2,)},
    ],
    "dense_flow": [{"adversarial_weight": 0.0}, {"shared": True, "loss": "hinge"}, {"overlap": False, "stages": 2}],
    "kdgan": [{"mimic": "kl"}, {"alpha": 1.0, "gamma": 0.0, "temperature": 0.2}],
}
CASES = [(name, knobs) for name in TERMS for knobs in [{}, *FORMS.get(name, [])]]
every_form = pytest.mark.parametrize(("name", "knobs"), CASES, ids=[f"{n}-{k}" if k else n for n, k in CASES])
every_term = pytest.mark.parametrize("name", list(TERMS))
ZERO_FOR_EQUALS = (
    *("kd", "logits", "squeeze", "dkd", "mlkd"),
    *("attention_transfer", "fsp", "nst", "similarity", "pkt", "rkd"),
)


@functools.cache
def teacher_network(classes: int, dtype: torch.dtype) -> torch.nn.Module:
    """A network that terms may read at the start; all cases share it, and none changes it."""
    torch.manual_seed(0)
    network = models.build("resnet8", width=0.25, in_channels=1, classes=classes, image_size=8)
    return network.to(dtype).eval().requires_grad_(False)


class Case:
    """A term with a student and a teacher that do not exist; the teacher's estimators are real."""

    def __init__(
        self,
        make_taps: MakeTaps,
        name: str,
        knobs: dict[str, Any],
        *,
        batch: int = 3,
        dtype: torch.dtype = torch.float32,
        student: dict[str, Any] | None = None,
        teacher: dict[str, Any] | None = None,
    ):
        self.config: TermConfig = TERMS[name].config(**knobs)
        self.student_shapes, self.student = make_taps(batch=batch, dtype=dtype, **(student or {}))
        self.index = torch.arange(batch) * 3
        images = torch.randn(batch, 1, 8, 8, generator=torch.Generator().manual_seed(5)).to(dtype)
        self.student = dataclasses.replace(self.student, images=images, index=self.index)
        self.teacher_shapes, taps = make_taps(batch=batch, dtype=dtype, seed=1, **(teacher or {}))
        self.spec = (self.config if isinstance(self.config, SqueezeConfig) else SqueezeConfig()).attention()
        self.labels = torch.arange(IMAGES) % self.student_shapes.classes
        self.target = self.labels[self.index]
        self.network = teacher_network(self.student_shapes.classes, dtype)
        torch.manual_seed(0)
        self.estimators = HierarchicalAttention(self.teacher_shapes, self.teacher_shapes.stages, self.spec).to(dtype)
        self.teacher = self.squeezed(taps)
        self.term = self.build(dtype)

    def squeezed(self, taps: Out) -> Out:
        """What the loop gives of a teacher: its taps and squeezed vectors, without gradients."""
        with torch.no_grad():
            return Out(
                taps.logits.detach(),
                taps.embedding.detach(),
                [stage.detach() for stage in taps.stages],
                [[block.detach() for block in stage] for stage in taps.blocks],
                self.estimators(taps),
            )

    def build(self, dtype: torch.dtype = torch.float32) -> Term:
        torch.manual_seed(1)
        term = self.config.build(self.student_shapes, self.teacher_shapes)
        term.meet(Setting(self.labels, self.network))
        return term.to(dtype)

    def value(self, term: Term | None = None) -> Tensor:
        torch.manual_seed(2)  # for terms that draw noise
        return (term or self.term)(self.student, self.teacher, self.target)

    def own_step(self, term: Term | None = None) -> dict[str, Tensor]:
        torch.manual_seed(3)
        return (term or self.term).own_step(self.student, self.teacher, self.target)


def leaves(out: Out) -> list[Tensor]:
    return [out.logits, out.embedding, *(block for stage in out.blocks for block in stage)]


@every_form
@pytest.mark.parametrize("batch", [1, 2, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_the_value_is_a_finite_scalar_with_finite_gradients(
    name: str, knobs: dict[str, Any], batch: int, dtype: torch.dtype, make_taps: MakeTaps
) -> None:
    case = Case(make_taps, name, knobs, batch=batch, dtype=dtype)
    scalars = case.own_step()
    value = case.value()
    assert value.shape == ()
    assert value.isfinite()
    assert all(scalar.shape == () and scalar.isfinite() and not scalar.requires_grad for scalar in scalars.values())
    value.backward()
    gradients = [tensor.grad for tensor in leaves(case.student) if tensor.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)


@every_form
def test_half_precision_stays_near_single_precision(name: str, knobs: dict[str, Any], make_taps: MakeTaps) -> None:
    if "student_dropout" in knobs:
        pytest.skip("the noise differs between the two precisions")
    exact, coarse = (
        Case(make_taps, name, knobs, dtype=dtype).value().item() for dtype in (torch.float32, torch.bfloat16)
    )
    assert coarse == pytest.approx(exact, rel=0.1, abs=0.05)


@every_form
def test_the_term_works_on_half_precision_taps_under_autocast(
    name: str, knobs: dict[str, Any], make_taps: MakeTaps
) -> None:
    case = Case(make_taps, name, knobs)
    with torch.autocast("cpu", torch.bfloat16):
        half = make_taps(dtype=torch.bfloat16)[1]
        case.student = dataclasses.replace(half, images=case.student.images, index=case.index)
        case.own_step()
        value = case.value()
    value.backward()
    assert value.isfinite()
    assert any(tensor.grad is not None for tensor in leaves(half))


@every_form
def test_the_gradient_reaches_the_taps_that_the_term_declares_and_an_own_step_reaches_none(
    name: str, knobs: dict[str, Any], make_taps: MakeTaps
) -> None:
    case = Case(make_taps, name, knobs)
    case.own_step()
    assert all(tensor.grad is None for tensor in leaves(case.student))
    case.value().backward()
    student = case.student
    taps = {
        "logits": [student.logits],
        "embedding": [student.embedding],
        "stages": list(student.stages),
        "blocks": [block for stage in student.blocks for block in stage],
    }
    declared = {id(tensor) for need in case.config.student_needs for tensor in taps.get(need, ())}
    reached = [tensor for tensor in leaves(student) if tensor.grad is not None]
    assert any(tensor.grad.abs().max() > 0 for tensor in reached)
    assert {id(tensor) for tensor in reached} <= declared


@every_form
def test_a_real_student_learns_and_a_real_teacher_and_its_estimators_are_not_touched(
    name: str, knobs: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    config, shape = TERMS[name].config(**knobs), {"in_channels": 1, "classes": 5, "image_size": 8}
    blocks = 3 if name == "squeeze" else 1  # so that numbers of taps other than "all" differ between the two
    student, network = (
        models.build("resnet8", width=0.25, **shape),
        models.build(f"resnet{6 * blocks + 2}", width=0.5, **shape),
    )
    spec = (config if isinstance(config, SqueezeConfig) else SqueezeConfig()).attention()
    estimators = HierarchicalAttention(network.shapes, network.shapes.stages, spec)
    # Left in need of gradients on purpose: asking the teacher must be enough to keep them away.
    teacher = Teacher(network.eval(), estimators, 0.0, (), "", False)
    images, target = torch.randn(6, 1, 8, 8), torch.arange(6) % 5
    before = copy.deepcopy((network.state_dict(), estimators.state_dict()))
    term = config.build(student.shapes, network.shapes)
    term.meet(Setting(target, network))
    known = teacher(images, config.teacher_needs)

    def taps() -> Out:
        return dataclasses.replace(student.taps(images), images=images, index=torch.arange(6))

    term.own_step(taps(), known, target)
    assert all(p.grad is None for p in student.parameters())
    term(taps(), known, target).backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in student.parameters())
    assert all(p.grad is None for module in (network, estimators) for p in module.parameters())
    for then, module in zip(before, (network, estimators), strict=True):
        assert all(torch.equal(then[path], value) for path, value in module.state_dict().items())


@every_form
def test_the_term_reads_of_the_teacher_only_what_it_declares(
    name: str, knobs: dict[str, Any], make_taps: MakeTaps
) -> None:
    case = Case(make_taps, name, knobs)
    needs, nothing = case.config.teacher_needs, torch.full((), torch.nan)
    poisoned = Out(
        case.teacher.logits.detach() if "logits" in needs else torch.full_like(case.teacher.logits, torch.nan),
        case.teacher.embedding.detach() if "embedding" in needs else nothing,
        [stage.detach() for stage in case.teacher.stages] if "stages" in needs else (),
        [[block.detach() for block in stage] for stage in case.teacher.blocks] if "blocks" in needs else (),
        [[v.detach() for v in level] for level in case.teacher.squeezed] if "squeezed" in needs else (),
    )
    expected = case.value(case.build()).item()
    assert case.term(case.student, poisoned if needs else None, case.target).isfinite()
    case.teacher = poisoned
    assert case.value().item() == expected
    case.own_step()


@every_form
def test_joint_parameters_gather_gradients_and_the_rest_gather_none(
    name: str, knobs: dict[str, Any], make_taps: MakeTaps
) -> None:
    case = Case(make_taps, name, knobs)
    joint = {id(p) for p in case.term.joint_parameters()}
    assert joint <= {id(p) for p in case.term.parameters()}
    case.value().backward()
    for path, p in case.term.named_parameters():
        if id(p) not in joint:
            assert p.grad is None, path
    reached = [p for p in case.term.joint_parameters() if p.grad is not None and p.grad.abs().max() > 0]
    assert bool(reached) == bool(joint)


@every_form
def test_the_values_of_one_state_are_equal_and_calling_changes_no_state(
    name: str, knobs: dict[str, Any], make_taps: MakeTaps
) -> None:
    case = Case(make_taps, name, knobs)
    before = copy.deepcopy(dict(case.term.named_parameters()))
    assert case.value().item() == case.value().item()
    assert all(torch.equal(before[path], p) for path, p in case.term.named_parameters())


@pytest.mark.parametrize("name", ZERO_FOR_EQUALS)
def test_the_value_is_0_where_the_student_equals_the_teacher(name: str, make_taps: MakeTaps) -> None:
    for depth in (1, 2, 3) if name == "squeeze" else (None,):
        case = Case(make_taps, name, {"depth": depth} if depth else {})
        case.teacher = case.squeezed(case.student)
        if isinstance(case.config, SqueezeConfig):
            own = case.term.estimators
            own.load_state_dict({k: v for k, v in case.estimators.state_dict().items() if k in own.state_dict()})
        assert case.value().item() == pytest.approx(0, abs=1e-6)


@every_form
def test_unlike_blocks_channels_sizes_and_descriptors_do_not_matter(
    name: str, knobs: dict[str, Any], make_taps: MakeTaps
) -> None:
    case = Case(
        make_taps,
        name,
        knobs,
        student={"channels": (3, 5, 7), "blocks": 1, "embedding": 7},
        teacher={"channels": (8, 10, 12), "blocks": 4, "size": 16, "embedding": 9},
    )
    case.own_step()
    value = case.value()
    value.backward()
    assert value.isfinite()
    assert value.shape == ()


@every_form
def test_training_goes_on_bit_identically_after_its_state_was_saved_and_loaded(
    name: str, knobs: dict[str, Any], make_taps: MakeTaps, tmp_path: Any
) -> None:
    case = Case(make_taps, name, knobs)

    def step(term: Term) -> float:
        case.own_step(term)
        value = case.value(term)
        for p in term.joint_parameters():
            p.grad = None
        value.backward()
        with torch.no_grad():
            for p in term.joint_parameters():
                if p.grad is not None:
                    p -= 0.1 * p.grad
        return value.item()

    for _ in range(3):
        step(case.term)
    torch.save(case.term.state_dict(), tmp_path / "state.pt")
    torch.manual_seed(99)
    other = case.config.build(case.student_shapes, case.teacher_shapes)
    other.meet(Setting(case.labels, case.network))
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert [step(case.term) for _ in range(3)] == [step(other) for _ in range(3)]
    for (path, one), (_, two) in zip(case.term.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(one, two), path


@pytest.fixture(scope="module")
def quick_gc() -> Iterator[None]:
    """What was there before these tests is not looked at again by the collector, which makes collecting quick."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@every_form
def test_nothing_piles_up_over_a_dozen_steps(
    name: str, knobs: dict[str, Any], make_taps: MakeTaps, quick_gc: None
) -> None:
    case = Case(make_taps, name, knobs)

    def steps(count: int) -> tuple[int, int]:
        for _ in range(count):
            case.own_step()
            case.value().backward()
        gc.collect()
        alive = [item for item in gc.get_objects() if type(item) in (Tensor, torch.nn.Parameter)]
        return len(alive), sum(item.nbytes for item in alive)

    steps(2)
    assert steps(12) == steps(3)


@every_term
def test_a_weight_of_0_is_the_same_as_no_term(name: str, make_taps: MakeTaps) -> None:
    case = Case(make_taps, name, {})
    other = "logits" if name == "ce" else "ce"
    results = []
    for terms in ({other: TERMS[other].config()}, {other: TERMS[other].config(), name: TERMS[name].config(weight=0.0)}):
        torch.manual_seed(0)
        objective = Objective(Terms(terms), case.student_shapes, case.teacher_shapes, EPOCHS)
        objective.meet(Setting(case.labels, case.network))
        after = torch.rand(1).item()  # a term that is not there draws no random numbers
        assert not objective.own_steps(case.student, case.teacher, case.target, LATE)
        total, values = objective(case.student, case.teacher, case.target, LATE)
        results.append((total.item(), list(values), list(objective.state_dict()), objective.teacher_needs, after))
    assert results[0] == results[1]


@every_term
def test_the_weight_multiplies_the_share_of_the_total_and_not_the_reported_value(
    name: str, make_taps: MakeTaps
) -> None:
    case = Case(make_taps, name, {})
    totals = []
    for weight in (1.0, 2.5):
        torch.manual_seed(1)
        terms = Terms({name: dataclasses.replace(case.config, weight=weight)})
        objective = Objective(terms, case.student_shapes, case.teacher_shapes, EPOCHS)
        objective.meet(Setting(case.labels, case.network))
        total, values = objective(case.student, case.teacher, case.target, LATE)
        totals.append((total.item(), values[name].item()))
    assert totals[0][1] == totals[1][1]
    assert totals[1][0] == pytest.approx(2.5 * totals[0][0], rel=1e-6)


@every_term
def test_the_term_is_described_with_its_source_and_is_pickled_and_compared_by_value(name: str) -> None:
    entry = TERMS[name]
    assert entry.summary
    assert entry.source
    assert entry.config.__doc__
    assert entry.config() == entry.config()
    assert copy.deepcopy(entry.config()) == entry.config()
    assert hash(entry.config()) == hash(entry.config())

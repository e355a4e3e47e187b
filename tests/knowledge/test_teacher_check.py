"""A teacher from elsewhere that is taken wrongly is told with the repair that mends it; a good one is left in peace."""

from __future__ import annotations

import itertools
import json
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from hksd import models
from hksd.data import DataSet, Split
from hksd.errors import RunError, UserError
from hksd.fit import fit
from hksd.models import weights
from hksd.models.classes import order_of
from hksd.run.evaluate import kind_of
from hksd.teacher.check import at_most
from hksd.teacher.prepare import familiar, prepare
from hksd.teacher.repairs import at_least, reordered
from hksd_search.export import as_trained, load_student

Make = Callable[..., Any]
NUMBERS = itertools.count()
NAMES = tuple(f"shade {letter}" for letter in "abcdefghijkl")

# Knows 12 shades of grey: logit j is the larger the nearer a pixel is to shade j; its batch norm changes nothing.
SOURCE = """
import torch
from torch import nn

class Shades(nn.Module):
    def __init__(self, classes, in_channels, kind="logits", sure=400.0):
        super().__init__()
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.norm = nn.BatchNorm1d(in_channels)
        self.head = nn.Linear(in_channels, classes)
        self.kind = kind
        goals = (torch.arange(classes) + 0.5) / classes
        with torch.no_grad():  # -sure (x - goal)^2 without its part x^2, which is the same for all classes
            self.head.weight.copy_((2 * sure * goals / in_channels)[:, None].expand(classes, in_channels))
            self.head.bias.copy_(-sure * goals**2)

    def forward(self, x):
        if self.kind == "of one size" and x.shape[-1] != 4:
            raise ValueError("another size")
        if self.kind == "of 32 pixels" and x.shape[-1] != 32:
            x = x.flip(2) * 0
        out = self.head(self.norm(self.pool(x)))
        if self.kind == "eval probabilities":
            return out if self.training else out.softmax(1)
        kinds = {"probabilities": out.softmax(1), "log": out.log_softmax(1), "sigmoid": out.sigmoid()}
        return kinds.get(self.kind, out)

def logits(classes, in_channels): return Shades(classes, in_channels)
def probabilities(classes, in_channels): return Shades(classes, in_channels, "probabilities")
def eval_probabilities(classes, in_channels): return Shades(classes, in_channels, "eval probabilities")
def log(classes, in_channels): return Shades(classes, in_channels, "log")
def of_one_size(classes, in_channels): return Shades(classes, in_channels, "of one size")
def of_32_pixels(classes, in_channels): return Shades(classes, in_channels, "of 32 pixels")
def sigmoid(classes, in_channels): return Shades(classes, in_channels, "sigmoid", 10.0)
"""


@pytest.fixture
def shades() -> DataSet:
    """12 shades of grey in three channels, 8 images of each to validate on."""

    def split(count: int) -> Split:
        labels = np.repeat(np.arange(12), count)
        noise = np.random.default_rng(count).integers(-3, 4, (len(labels), 4, 4, 3))
        images = ((labels + 0.5) * 255 / 12)[:, None, None, None] + noise
        return Split(images.round().astype(np.uint8), labels, np.arange(len(labels)))

    return DataSet("folder", NAMES, split(4), split(8), (0.5, 0.5, 0.5), (0.29, 0.29, 0.29), "shades")


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    name = f"shades_of_{next(NUMBERS)}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield name
    sys.modules.pop(name, None)


@pytest.fixture
def run(module: str, make_config: Make, shades: DataSet, tmp_path: Path) -> Make:
    """run("logits", change, header={...}, preprocess=...): a run with that teacher, changed before it is saved."""

    def make(
        kind: str = "logits",
        change: Callable[[Any], object] = lambda network: None,
        header: dict[str, str] | None = None,
        terms: dict[str, Any] | None = None,
        **teacher: Any,
    ) -> Any:
        spec = models.NetworkSpec(model=f"{module}:{kind}")
        network = models.make(spec, **shades.image_shape)
        change(network.bare)
        weights.save(tmp_path / "teacher.safetensors", network, header or {})
        keys = {"model": spec.model, "width": 1, "checkpoint": str(tmp_path / "teacher.safetensors"), **teacher}
        return make_config(terms=terms or {"kd": {}}, teacher=keys, train={"epochs": 1, "batch_size": 32})

    return make


def shuffled(seed: int = 1) -> list[int]:
    return np.random.default_rng(seed).permutation(12).tolist()  # type: ignore[no-any-return]


def reorder(order: list[int]) -> Callable[[Any], object]:
    def change(network: Any) -> None:
        for part in network.head.parameters():
            part.data = part.data[order].clone()

    return change


def never_gathered(network: Any) -> None:
    """The batch norm scales what its batch is to what the head wants, and its running statistics are not those."""
    network.norm.weight.data.fill_(0.288)
    network.norm.bias.data.fill_(0.5)
    network.norm.running_mean.fill_(40.0)


# --- told with its cure


@pytest.mark.parametrize(
    ("teacher", "cure"),
    [
        ({}, "another normalisation, teacher.preprocess: none it has 100.00%"),
        ({"preprocess": "imagenet"}, "another normalisation, teacher.preprocess: none it has 100.00%"),
        ({"preprocess": "none", "change": reorder(shuffled())}, "teacher.classes: [shade"),
        ({"preprocess": "none", "kind": "of_32_pixels"}, "with another size, teacher.image_size: 32 it has 100.00%"),
        ({"change": reorder(shuffled())}, "teacher.preprocess: none and its classes in another order"),
        ({"preprocess": "none", "change": never_gathered}, "(train mode; save running means"),
    ],
    ids=["scale", "another scale", "order", "size", "scale and order", "running statistics"],
)
def test_one_that_is_taken_wrongly_is_told_with_the_repair_that_mends_it(
    teacher: dict[str, Any], cure: str, run: Make, shades: DataSet, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    config = run(**teacher)
    for _ in range(2):  # one that is refused is not taken from the cache either
        try:
            made = prepare(config, shades, cache_dir=tmp_path / "cache")
            said = "".join(made.remarks)
            assert caplog.text == "" or made.remarks[0] in caplog.messages
        except UserError as error:
            said = str(error)
            assert "no better than chance" in said
        assert cure in said
        assert "\n" not in said


def test_the_order_that_it_names_mends_it(run: Make, shades: DataSet, caplog: pytest.LogCaptureFixture) -> None:
    change = reorder(shuffled())
    with pytest.raises(UserError) as caught:
        prepare(run(change=change, preprocess="none", expected_accuracy=0.9), shades)
    assert "far below teacher.expected_accuracy 90.00%" in str(caught.value)
    order = str(caught.value).partition("teacher.classes: [")[2].partition("]")[0].split(", ")
    mended = prepare(run(change=change, preprocess="none", expected_accuracy=0.9, classes=order), shades)
    assert mended.accuracy == 1
    assert "teacher.classes: the same classes as those of the data, in another order" in caplog.text


def test_the_size_that_it_names_mends_it_and_one_that_takes_no_other_is_not_tried(run: Make, shades: DataSet) -> None:
    keys = {"preprocess": "none", "expected_accuracy": 0.9}
    with pytest.raises(UserError, match=r"teacher\.image_size: 32 it has"):
        prepare(run("of_32_pixels", **keys), shades)
    assert prepare(run("of_32_pixels", image_size=32, **keys), shades).accuracy == 1
    said = "".join(prepare(run("of_one_size"), shades).remarks)
    assert "another normalisation, teacher.preprocess: none it has" in said
    assert "teacher.image_size" not in said


def test_one_that_gives_probabilities_is_refused_before_it_is_trained(
    module: str, make_config: Make, shades: DataSet
) -> None:
    keys = {"model": f"{module}:eval_probabilities", "width": 1, "epochs": 3}
    epochs: list[int] = []
    with pytest.raises(UserError, match="gives probabilities"):
        prepare(make_config(terms={"kd": {}}, teacher=keys), shades, on_progress=lambda _, at, *__: epochs.append(at))
    assert epochs == []


def test_a_demand_that_it_does_not_meet_does_not_hide_the_cause(run: Make, shades: DataSet) -> None:
    with pytest.raises(
        RunError, match=r"below teacher\.min_accuracy 90.00%: of 144 images tried, .*preprocess: none it has"
    ):
        prepare(run(min_accuracy=0.9), shades)


def test_weights_of_a_training_that_diverged_are_told_as_such(run: Make, shades: DataSet) -> None:
    def diverge(network: Any) -> None:
        network.head.bias.data[3] = float("nan")

    with pytest.raises(UserError, match=r"^teacher\.checkpoint: .*'head\.bias' holds NaN or infinite numbers"):
        prepare(run(change=diverge), shades)


def test_a_checkpoint_that_is_no_plain_file_is_told_before_it_is_read(
    run: Make, shades: DataSet, tmp_path: Path
) -> None:
    for path, said in ((tmp_path, "a folder"), (Path("/dev/zero"), "a device"), (tmp_path / "no.pt", "No such file")):
        with pytest.raises(UserError, match=rf"^teacher\.checkpoint: .*{said}"):
            prepare(replace(config := run(), teacher=replace(config.teacher, checkpoint=str(path))), shades)


def test_remarks_are_left_to_a_caller_that_tells_them(
    run: Make, shades: DataSet, caplog: pytest.LogCaptureFixture
) -> None:
    config = run(expected_accuracy=0)
    assert prepare(config, shades, quiet=True).remarks
    assert caplog.text == ""
    assert list(prepare(config, shades).remarks) == caplog.messages


def test_one_that_is_good_is_left_in_peace(run: Make, shades: DataSet, caplog: pytest.LogCaptureFixture) -> None:
    for expected in (None, 0.98):
        teacher = prepare(run(preprocess="none", expected_accuracy=expected), shades)
        assert (teacher.accuracy, teacher.remarks, caplog.text) == (1.0, (), "")


def test_one_that_knows_nothing_is_refused_with_the_usual_causes_unless_nothing_is_expected(
    run: Make, shades: DataSet, tmp_path: Path
) -> None:
    def forget(network: Any) -> None:
        torch.manual_seed(0)
        network.head.reset_parameters()

    for _ in range(2):
        with pytest.raises(UserError, match=r"no better than chance.*usual causes: another normalisation.*takes it as"):
            prepare(run(change=forget), shades, cache_dir=tmp_path / "cache")
    taken = prepare(run(change=forget, expected_accuracy=0), shades, cache_dir=tmp_path / "cache")
    assert "no better than chance" in "".join(taken.remarks)


def test_a_weak_one_that_nothing_mends_is_taken(make_config: Make, digits: DataSet, tmp_path: Path) -> None:
    weak = prepare(make_config(terms={"kd": {}}, teacher={"epochs": 4}), digits)
    assert 0.15 < weak.accuracy < 0.9
    weights.save(tmp_path / "weak.safetensors", weak.model, {})
    config = make_config(terms={"kd": {}}, teacher={"checkpoint": str(tmp_path / "weak.safetensors")})
    taken = prepare(config, digits)
    assert taken.accuracy == weak.accuracy
    assert (weak.familiar, taken.familiar) == (False, True)


# --- what it gives


@pytest.mark.parametrize("kind", ["probabilities", "eval_probabilities"])
@pytest.mark.parametrize("loaded", [True, False])
def test_one_that_gives_probabilities_is_refused(kind: str, loaded: bool, run: Make, shades: DataSet) -> None:
    config = run(kind, preprocess="none") if loaded else run(kind, checkpoint=None, epochs=1, lr=1e-4)
    with pytest.raises(UserError, match=r"gives probabilities.*remove the softmax"):
        prepare(config, shades)


def test_a_student_that_gives_probabilities_is_refused_and_one_that_does_only_afterwards_is_told(
    module: str, make_config: Make, shades: DataSet, caplog: pytest.LogCaptureFixture
) -> None:
    def distil(kind: str) -> None:
        student = {"model": f"{module}:{kind}", "width": 1}
        fit(make_config(terms={"ce": {}}, student=student, train={"epochs": 1, "lr": 1e-3}), data=shades)

    with pytest.raises(UserError, match=rf"^{module}:probabilities gives probabilities"):
        distil("probabilities")
    distil("logits")
    assert caplog.text == ""
    distil("eval_probabilities")
    assert "in eval mode" in caplog.text


def test_log_probabilities_are_told_only_where_values_are_compared_and_shares_always(
    run: Make, shades: DataSet
) -> None:
    assert prepare(run("log", preprocess="none"), shades).remarks == ()
    told = prepare(run("log", preprocess="none", terms={"logits": {}}), shades).remarks
    assert "log-probabilities" in told[0]
    shares = run("sigmoid", preprocess="none", expected_accuracy=0)
    assert any("as after a sigmoid" in remark for remark in prepare(shares, shades).remarks)


@given(st.integers(0, 1000), st.integers(2, 40), st.floats(0.1, 50))
def test_logits_are_told_from_probabilities_and_their_logarithms(seed: int, classes: int, scale: float) -> None:
    logits = scale * torch.randn(16, classes, generator=torch.Generator().manual_seed(seed))
    assert kind_of(logits) == "logits"
    assert kind_of(logits.softmax(1)) == "probabilities"
    assert kind_of(logits.log_softmax(1)) == "log-probabilities"
    assert kind_of(logits.softmax(1).half()) == "probabilities"
    assert kind_of(logits.sigmoid()) == "shares"


# --- names of classes


def test_classes_that_the_file_names_are_brought_into_the_order_of_the_data(
    run: Make, shades: DataSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    order = shuffled()
    names = [NAMES[label] for label in order]
    header = {"classes": json.dumps(names)}
    for name in ("names.txt", "names.json"):
        (tmp_path / name).write_text(json.dumps(names) if name.endswith("json") else "\n".join(names) + "\n")
    for keys in (
        {"header": header},
        {"classes": str(tmp_path / "names.txt")},
        {"classes": str(tmp_path / "names.json")},
    ):
        for cached in (False, True):
            made = prepare(run(change=reorder(order), preprocess="none", **keys), shades, cache_dir=tmp_path / "cache")
            assert (made.cached, made.accuracy) == (cached, 1.0)
            assert "matched by their names" in made.remarks[0]
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    with pytest.raises(UserError, match=r"teacher\.classes: \["):
        wrong = run(
            change=reorder(order), preprocess="none", classes=str(tmp_path / "names.txt"), expected_accuracy=0.9
        )
        prepare(wrong, shades, cache_dir=tmp_path / "cache")


@pytest.mark.parametrize(
    ("known", "wanted", "expected"),
    [
        ([], ["a", "b"], None),
        (["a", "b"], ["a", "b"], None),
        (["b", "c", "a"], ["a", "b", "c"], [2, 0, 1]),
        (["caf\u00e9", "bar"], ["bar", "cafe\u0301"], [1, 0]),
        (["0", "1", "10", "2"], ["0", "1", "2", "10"], [0, 1, 3, 2]),
        (["0", "1", "2"], ["cat", "dog", "eel"], None),
        (["cat", "dog", "eel"], ["0", "1", "2"], None),
    ],
)
def test_names_decide_which_output_stands_for_which_class(
    known: list[str], wanted: list[str], expected: list[int] | None
) -> None:
    assert order_of(known, wanted, "file") == expected


@pytest.mark.parametrize(
    ("known", "wanted", "message"),
    [
        (["cat", "dgo"], ["cat", "dog"], "does not know dog; did you mean 'dgo'.*alone knows dgo.*the data: cat, dog"),
        (["cat", "cat"], ["cat", "dog"], "'cat' stands there twice"),
        (["a", "b", "c"], ["a", "b"], "it alone knows c"),
        (["0", "1", "2"], ["a", "b"], "does not know a, b"),
    ],
)
def test_other_classes_are_told_with_both_lists(known: list[str], wanted: list[str], message: str) -> None:
    with pytest.raises(UserError, match=f"^file: the classes of the model are not those of the data: .*{message}"):
        order_of(known, wanted, "file")


def test_a_student_is_read_back_with_its_classes_in_the_order_of_the_data(
    make_config: Make, digits: DataSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config(terms={"ce": {}})
    student = fit(config, data=digits, out_dir=tmp_path).student
    order = np.random.default_rng(0).permutation(10).tolist()
    names = [f"digit {name}" for name in digits.classes]
    known = replace(digits, classes=tuple(names))
    images = torch.randn(5, 1, 8, 8)
    weights.save(tmp_path / "student.safetensors", student, {"classes": json.dumps(names)})
    moved = replace(known, classes=tuple(names[number] for number in order))
    again, metadata = load_student(config, moved, tmp_path / "student.safetensors")
    torch.testing.assert_close(again(images), student.eval()(images)[:, order])
    assert json.loads(metadata["classes"]) == list(moved.classes)
    assert "matched by their names" in caplog.text
    with pytest.raises(UserError, match="not those of the data"):
        load_student(config, replace(known, classes=("zero", *names[1:])), tmp_path / "student.safetensors")


def test_a_student_sees_other_images_on_the_scale_that_it_learned_from(
    digits: DataSet, caplog: pytest.LogCaptureFixture
) -> None:
    header = {"mean": json.dumps(digits.mean), "std": json.dumps(digits.std), "image_size": "8"}
    for same in ({}, header, {**header, "mean": "[0, 0, 0]"}, {**header, "mean": "x"}):
        assert as_trained(digits, same) is digits
    assert caplog.text == ""
    other = replace(digits, mean=(0.9,), std=(0.1,))
    found = as_trained(other, header)
    assert (found.mean, found.std) == (digits.mean, digits.std)
    assert "as in the training of the student" in caplog.text


def test_a_classifier_whose_rows_are_not_the_logits_is_not_moved(run: Make, shades: DataSet, module: str) -> None:
    config = run(preprocess="none", classes=[NAMES[label] for label in shuffled()])
    factory = sys.modules[module].logits
    sys.modules[module].logits = lambda classes, in_channels: _flipped(factory(classes, in_channels))
    with pytest.raises(UserError, match="rows can be moved"):
        prepare(config, shades)


def _flipped(network: Any) -> Any:
    network.register_forward_hook(lambda module, inputs, out: out.flip(1))
    return network


# --- numbers


@given(st.integers(1, 400), st.data(), st.floats(0, 1))
def test_the_tails_are_those_of_the_binomial_distribution(count: int, data: st.DataObject, share: float) -> None:
    right = data.draw(st.integers(0, count))
    assert at_least(right, count, share) == pytest.approx(stats.binom.sf(right - 1, count, share), abs=1e-9)
    assert at_most(right, count, share) == pytest.approx(stats.binom.cdf(right, count, share), abs=1e-9)


@given(st.integers(0, 200), st.integers(2, 30))
def test_the_best_order_of_random_answers_is_no_better_than_chance_and_a_true_one_is_found(
    seed: int, classes: int
) -> None:
    draw = np.random.default_rng(seed)
    labels = draw.permutation(np.repeat(np.arange(classes), 12))
    chance, order = reordered(draw.integers(0, classes, len(labels)), labels, classes)
    assert chance < 1 / classes + 5 / np.sqrt(classes * len(labels))
    assert sorted(order) == list(range(classes))
    true = draw.permutation(classes)
    found, order = reordered(np.argsort(true)[labels], labels, classes)
    assert found == 1
    assert list(order) == list(true)


def test_an_accuracy_is_familiar_unless_the_file_tells_the_same_split(
    run: Make, shades: DataSet, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    assert prepare(run(preprocess="none"), shades).familiar
    header = {"data_fingerprint": shades.fingerprint, "mean": "[0, 0, 0]", "std": "[1, 1, 1]", "image_size": "4"}
    known = run(preprocess="none", header=header)
    assert not prepare(known, shades).familiar
    assert not familiar(known, shades)
    assert familiar(known, replace(shades, fingerprint="others"))
    assert caplog.text == ""
    bright = {**header, "mean": "[0.2, 0.2, 0.2]"}
    assert "trained on images of another normalisation; set teacher.mean: [0.2" in "".join(
        prepare(run(preprocess="none", header=bright), shades).remarks
    )
    large = {**header, "image_size": "8"}
    assert "set teacher.image_size: 8" in "".join(prepare(run(preprocess="none", header=large), shades).remarks)

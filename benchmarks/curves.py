"""A table of learning curves: every configuration of a small grid, trained once at full length on the digits.

`hypervolume.py` replays searches against it, so that ways to search can be compared over many repeats without any
training. The table is a CSV file: the choices of a configuration, its costs, its accuracy after each epoch in 1/10,000,
and lines with the command, versions and hardware in front. The curve of a run that fails, because its loss is no longer
finite, ends there. A file that is there already is continued.

    python benchmarks/curves.py --out benchmarks/results/curves.csv
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import itertools
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import common

from hksd import data as datasets
from hksd.errors import NonFiniteLossError
from hksd.fit import fit
from hksd.provenance import provenance
from hksd_search.space import space as spaces
from hksd_search.space.sizes import Meter
from hksd_search.space.space import Space

SPACE = """
data: {name: digits, validation: 0.4}
teacher: {model: resnet20, epochs: 20, batch_size: 64}
student:
  model: {choice: [resnet8, resnet14]}
  width: {choice: [0.125, 0.1875, 0.25, 0.3125, 0.375, 0.5, 0.625, 0.75]}
terms:
  ce: {weight: 1.0}
  kd: {weight: {choice: [0.1, 1.0, 10.0]}, temperature: 4.0}
train:
  epochs: 9
  batch_size: {choice: [64, 128]}
  lr: {choice: [0.01, 0.03, 0.1, 0.3]}
  device: cpu
search: {trials: 60, minimize: [params], arms: none}
"""
SCALE = 10_000


def grid(space: Space) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Every combination of the choices, with its run configuration as nested mappings."""
    for values in itertools.product(*(spread.values for spread in space.ranges.values())):
        tree = json.loads(json.dumps(space.tree))
        for path, value in zip(space.ranges, values, strict=True):
            node = tree
            for key in path[:-1]:
                node = node[key]
            node[path[-1]] = value
        yield values, tree


def begin(file: Path, space: Space) -> int:
    """Write what stands in front of the rows; returns their number, 0."""
    file.parent.mkdir(parents=True, exist_ok=True)
    facts = {"command": common.command(), **provenance(), "space": space.tree}
    names = [".".join(map(str, path)) for path in space.ranges]
    epochs = range(1, space.middle({}).train.epochs + 1)
    with file.open("w", newline="") as output:
        output.write("".join(f"# {line}\n" for line in json.dumps(facts, indent=1).splitlines()))
        csv.writer(output).writerow([*names, "params", "mflops", *(f"epoch {epoch}" for epoch in epochs)])
    return 0


def rows(file: Path) -> list[dict[str, str]]:
    """The rows of a table."""
    return list(csv.DictReader(line for line in file.read_text().splitlines() if not line.startswith("#")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], help="another value in the space, as in `hksd search`")
    parser.add_argument("--every", type=int, default=1, help="train one configuration in that many only")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "curves.yaml"
        file.write_text(SPACE)
        space = spaces.load(str(file), options.set)
        data = datasets.load(space.middle({}).data)
        meter, shared = Meter(data.image_shape), space.middle({})
        known = begin(options.out, space) if not options.out.exists() else len(rows(options.out))
        with options.out.open("a", newline="") as output:
            writer = csv.writer(output)
            for values, tree in itertools.islice(grid(space), known * options.every, None, options.every):
                config, curve = spaces.from_tree(tree), list[int]()
                with contextlib.suppress(NonFiniteLossError):
                    fit(
                        config,
                        data=data,
                        cache_dir=Path(scratch) / "teachers",
                        shared=shared,
                        on_epoch=lambda report, curve=curve: curve.append(round(report.val_accuracy * SCALE)),
                    )
                costs = meter.costs(config.student)
                blank = [""] * (config.train.epochs - len(curve))
                writer.writerow([*values, costs["params"], f"{costs['mflops']:.5g}", *curve, *blank])
                output.flush()


if __name__ == "__main__":
    main()

"""A table of learning curves: every configuration of a small grid, trained once at full length on the digits.

`hypervolume.py` replays searches against it, so that ways to search can be compared over many repeats without any
training. The table is a CSV file: the choices of a configuration, its costs, its accuracy after each epoch in 1/10,000,
and lines with the command, versions and hardware in front.

    python benchmarks/curves.py --out benchmarks/results/curves.csv
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import common

from hksd import data as datasets
from hksd import loop
from hksd.provenance import provenance
from hksd.train import fit
from search import space as spaces
from search.costs import Meter
from search.space import Space

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
  lr: {choice: [0.01, 0.03, 0.1, 0.3, 1.0]}
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
        meter, shared = Meter(loop.image_shape(data)), space.middle({})
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with options.out.open("w", newline="") as output:
            facts = {"command": common.command(), **provenance(), "space": space.tree}
            output.write("".join(f"# {line}\n" for line in json.dumps(facts, indent=1).splitlines()))
            epochs = range(1, shared.train.epochs + 1)
            writer = csv.writer(output)
            names = [".".join(map(str, path)) for path in space.ranges]
            writer.writerow([*names, "params", "mflops", *(f"epoch {epoch}" for epoch in epochs)])
            for values, tree in itertools.islice(grid(space), None, None, options.every):
                config = spaces.from_tree(tree)
                result = fit(config, data=data, cache_dir=Path(scratch) / "teachers", shared=shared)
                costs = meter.costs(config.student)
                curve = [round(report.val_accuracy * SCALE) for report in result.history]
                writer.writerow([*values, costs["params"], f"{costs['mflops']:.5g}", *curve])
                output.flush()


if __name__ == "__main__":
    main()

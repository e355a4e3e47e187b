"""What images cost: our batches beside a DataLoader, and opening kept images beside decoding them.

Batches: random crop with padding 4, flip, normalisation, float32; the same images in the same batch size everywhere.
The unit is images per CPU second, children's included, so that other load on the machine tells little; sides take
turns, and a figure is the median of its turns; torch has one thread. A DataLoader is measured as it comes: with its
collation, its workers started for the epoch, and its images in memory as it is usually given them (arrays that become
PIL images, or tensors).

    python benchmarks/data.py --root PATH_TO_CIFAR10 --out benchmarks/results/data.json
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hksd import data
from hksd.data.augment import Batch, batches_of
from hksd.data.settings import DataConfig
from hksd.provenance import provenance
from hksd.torchvision_guard import declare_missing_operators

LEAST_S = 1.0  # CPU seconds of one turn

# A fresh process: opens the images, makes one epoch of batches, and tells what that took of CPU and of memory of its
# own (pages that are backed by no file, in MB).
OPENER = """
import json, sys, time, torch
from pathlib import Path
from hksd import data
from hksd.data.augment import batches_of
from hksd.data.settings import DataConfig
torch.set_num_threads(1)
config, store = DataConfig(**json.loads(sys.argv[1])), Path(sys.argv[2]) if sys.argv[2] else None
def own():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) / 1024
before, start = own(), time.process_time()
found = data.load(config, store)
opened, again = time.process_time() - start, time.process_time()
data.load(config, store) if store else None
again = time.process_time() - again
for batch in batches_of(found.train, found, config, torch.device("cpu"), augment=True).augmented(0, 128, 0):
    pass
print(json.dumps({"cpu_s": opened, "again_cpu_s": again if store else None, "own_mb": own() - before}))
"""


class Images(Dataset[tuple[Tensor, int]]):
    """A data set of one image at a time, as torchvision's are."""

    def __init__(self, split: data.Split, transform: Callable[[Any], Tensor], of: Callable[[Any], Any]):
        self.images, self.labels, self.transform, self.of = split.images, split.labels.tolist(), transform, of

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return self.transform(self.of(self.images[row])), self.labels[row]


def sides(found: data.DataSet, config: DataConfig, batch: int) -> dict[str, Callable[[int], Iterable[Any]]]:
    """Name -> epoch -> batches."""
    declare_missing_operators()
    from PIL import Image
    from torchvision import transforms as v1
    from torchvision.transforms import v2

    assert isinstance(found.train, data.Split)
    split = data.Split(np.array(found.train.images), found.train.labels, found.train.index)
    pil = v1.Compose(
        [
            v1.RandomCrop(32, padding=4),
            v1.RandomHorizontalFlip(),
            v1.ToTensor(),
            v1.Normalize(found.mean, found.std),
        ]
    )
    tensors = v2.Compose(
        [
            v2.RandomCrop(32, padding=4),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(list(found.mean), list(found.std)),
        ]
    )
    of_pil = Images(split, pil, Image.fromarray)
    of_tensors = Images(split, tensors, lambda image: torch.from_numpy(image).permute(2, 0, 1))
    ours = batches_of(found.train, found, config, torch.device("cpu"), augment=True)

    def loader(images: Images, workers: int) -> Callable[[int], Iterator[Any]]:
        return lambda epoch: iter(DataLoader(images, batch, shuffle=True, num_workers=workers))

    return {
        "hksd": lambda epoch: ours.augmented(epoch, batch, 0),
        "DataLoader, PIL transforms, 0 workers": loader(of_pil, 0),
        "DataLoader, PIL transforms, 2 workers": loader(of_pil, 2),
        "DataLoader, torchvision v2 on tensors, 0 workers": loader(of_tensors, 0),
    }


def cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def rate(side: Callable[[int], Iterable[Any]]) -> float:
    """Images per CPU second over whole epochs, at least one and `LEAST_S`."""
    start, count, epoch = cpu_seconds(), 0, 0
    while not epoch or cpu_seconds() - start < LEAST_S:
        for batch in side(epoch):
            count += len(batch.labels if isinstance(batch, Batch) else batch[1])
        epoch += 1
    return count / (cpu_seconds() - start)


def take_turns(found: data.DataSet, config: DataConfig, batch: int, turns: int) -> dict[str, Any]:
    """Images per CPU second of every side: median and all turns."""
    all_sides = sides(found, config, batch)
    rates: dict[str, list[float]] = {name: [] for name in all_sides}
    for _ in range(turns):
        for name, side in all_sides.items():
            rates[name].append(rate(side))
    ours = statistics.median(rates["hksd"])
    return {
        name: {
            "images_per_cpu_s": round(statistics.median(values)),
            "hksd_is_faster_by": round(ours / statistics.median(values), 1),
            "turns": [round(value) for value in values],
        }
        for name, values in rates.items()
    }


def openings(knobs: dict[str, Any], store: Path, turns: int) -> dict[str, Any]:
    """CPU seconds and memory of fresh processes that decode, and that open what is kept in `store` already."""
    rows: dict[str, list[dict[str, float]]] = {"decoding": [], "opening": []}
    for _ in range(turns):
        for name, where in (("decoding", ""), ("opening", str(store))):
            done = subprocess.run(
                [sys.executable, "-c", OPENER, json.dumps(knobs), where], capture_output=True, text=True, check=True
            )
            rows[name].append(json.loads(done.stdout))

    def median(name: str, key: str) -> float:
        return round(statistics.median(row[key] for row in rows[name]), 4)

    return {
        "decoding": {key: median("decoding", key) for key in ("cpu_s", "own_mb")},
        "opening": {key: median("opening", key) for key in ("cpu_s", "again_cpu_s", "own_mb")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="CIFAR-10 in any of the three layouts")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    knobs = {"name": "cifar10", "root": options.root}
    config = DataConfig(**knobs)
    with tempfile.TemporaryDirectory() as folder:
        found = data.load(config, Path(folder))
        result = {
            "command": f"python benchmarks/data.py --root PATH --batch {options.batch} --turns {options.turns}",
            "provenance": provenance(),
            "pillow": version("pillow"),
            "images": len(found.train),
            "batch": options.batch,
            "file_mb": round(sum(file.stat().st_size for file in Path(folder).rglob("*")) / 2**20, 1),
            "start": openings(knobs, Path(folder), options.turns),
            "batches": take_turns(found, config, options.batch, options.turns),
        }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: result[key] for key in ("start", "batches")}, indent=1))


if __name__ == "__main__":
    main()

"""The real CIFAR-10, where it lies beside the repository."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hksd import data
from hksd.data.settings import DataConfig

ROOT = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "cifar10"
NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

pytestmark = pytest.mark.skipif(not ROOT.is_dir(), reason="CIFAR-10 in parquet does not lie beside the repository")


@pytest.fixture(scope="module")
def config() -> DataConfig:
    return DataConfig(name="cifar10", root=str(ROOT), limit=200)


@pytest.fixture(scope="module")
def cifar(config: DataConfig) -> data.DataSet:
    return data.load(config)


def test_shapes_and_class_names_are_those_of_cifar10(cifar):
    assert cifar.classes == NAMES
    assert cifar.train.images.shape == (180, 32, 32, 3)
    assert cifar.validation.images.shape == (20, 32, 32, 3)
    assert cifar.train.images.dtype == np.uint8


def test_both_splits_are_balanced(cifar):
    assert np.bincount(cifar.train.labels).tolist() == [18] * 10
    assert np.bincount(cifar.validation.labels).tolist() == [2] * 10


def test_the_splits_are_disjoint_and_index_the_training_set(cifar):
    train, validation = set(cifar.train.index), set(cifar.validation.index)
    assert not train & validation
    assert len(train | validation) == 200
    assert max(train | validation) < 50_000


def test_the_statistics_are_near_the_published_ones(cifar):
    # (0.4914, 0.4822, 0.4465) and (0.247, 0.243, 0.262) over all 50,000 images; 180 images scatter around them.
    assert cifar.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=0.05)
    assert cifar.std == pytest.approx((0.247, 0.243, 0.262), abs=0.03)


def test_pixels_do_not_depend_on_the_limit(config, cifar):
    other = data.load(DataConfig(name="cifar10", root=str(ROOT), limit=400))
    seen = {
        int(i): (image, label)
        for split in (other.train, other.validation)
        for i, image, label in zip(split.index, split.images, split.labels, strict=True)
    }
    for index, image, label in zip(cifar.train.index, cifar.train.images, cifar.train.labels, strict=True):
        assert (seen[int(index)][0] == image).all()
        assert seen[int(index)][1] == label


def test_the_test_set_is_whole(config):
    test = data.load_test(config)
    assert test.images.shape == (10_000, 32, 32, 3)
    assert np.bincount(test.labels).tolist() == [1000] * 10

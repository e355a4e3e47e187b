"""Memory of an inference: what a careful reader counts by hand, and the same wherever it is counted."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from hksd import models
from hksd.config.networks import StudentConfig
from hksd.models.footprint import Activations, weight_bytes
from hksd.models.size import size_of

FLOAT = 4
IMAGE, MAP, LOGITS = 16, 32, 3  # numbers: 1x4x4, 2x4x4, 3


class Small(nn.Module):
    """Convolution to two channels, something, classifier."""

    def __init__(self, middle: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.middle = middle
        self.conv = nn.Conv2d(1, 2, 3, padding=1, bias=False)
        self.classifier = nn.Linear(MAP, LOGITS)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.middle(self.conv(images), images)
        logits: Tensor = self.classifier(maps.flatten(1))
        return logits


def peak(network: nn.Module, image: Tensor) -> int:
    with torch.no_grad(), Activations(network.parameters()) as activations:
        result = network(image)
    return activations.peak(result)


@pytest.mark.parametrize("device", ["meta", "cpu"])
@pytest.mark.parametrize(
    ("middle", "numbers"),
    [
        (lambda maps, image: maps, IMAGE + MAP),
        (lambda maps, image: torch.relu(maps), 2 * MAP),  # the image is not needed any more
        (lambda maps, image: torch.relu_(maps), IMAGE + MAP),
        (lambda maps, image: maps.transpose(2, 3).transpose(2, 3), IMAGE + MAP),  # views take no memory
        (lambda maps, image: torch.relu(maps) + image, IMAGE + 2 * MAP),  # a branch keeps the image alive
        (lambda maps, image: maps + torch.sigmoid(torch.relu(maps)), 3 * MAP),
    ],
    ids=["plain", "another map", "in place", "views", "branch of the image", "branch of the map"],
)
def test_the_peak_is_the_largest_sum_of_maps_between_their_making_and_their_last_use(
    middle: Callable[[Tensor, Tensor], Tensor], numbers: int, device: str
) -> None:
    with torch.device(device):
        assert peak(Small(middle), torch.zeros(1, 1, 4, 4)) == FLOAT * numbers


def test_maps_that_python_still_holds_are_not_alive() -> None:
    held: list[Tensor] = []

    def middle(maps: Tensor, image: Tensor) -> Tensor:
        for _ in range(5):
            held.append(maps)
            maps = torch.relu(maps)
        return maps

    assert peak(Small(middle), torch.zeros(1, 1, 4, 4)) == FLOAT * 2 * MAP


def test_an_output_that_nobody_reads_does_not_count() -> None:
    network = nn.Sequential(nn.MaxPool2d(2), nn.Flatten())  # a max-pool makes positions as well, of 8 bytes each
    with torch.device("meta"):
        assert peak(network, torch.zeros(1, 1, 4, 4)) == FLOAT * (16 + 4)


def test_weights_that_are_shared_and_counters_count_once_and_not_at_all() -> None:
    network = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4))
    network[1].weight = network[0].weight
    assert weight_bytes(network) == FLOAT * (16 + 4 * 4)


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "vgg8", "cifar_mobilenet_v2", "cifar_shufflenet_v1"])
def test_the_peak_memory_of_a_network_rises_with_its_width_and_holds_its_weights(name: str) -> None:
    image = {"in_channels": 3, "classes": 10, "image_size": 32}
    sizes = [size_of(StudentConfig(model=name, width=width).spec(), **image) for width in (0.25, 0.5, 1.0, 2.0)]
    memory = [size.peak_memory for size in sizes]
    assert sorted(set(memory)) == memory
    assert all(FLOAT * size.params < size.peak_memory for size in sizes)
    assert sizes[0].peak_memory_mb == sizes[0].peak_memory / 1e6


def test_a_network_costs_the_same_memory_on_the_meta_device_as_on_the_cpu() -> None:
    size = size_of(StudentConfig(model="resnet14", width=0.5).spec(), in_channels=3, classes=10, image_size=32)
    network = models.build("resnet14", in_channels=3, classes=10, width=0.5).eval()
    with torch.no_grad(), Activations((*network.parameters(), *network.buffers())) as activations:
        logits = network(torch.zeros(1, 3, 32, 32))
    assert size.peak_memory == weight_bytes(network) + activations.peak(logits)

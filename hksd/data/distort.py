"""TCIFAR: CIFAR with additive Gaussian artefacts on training and test images (the KR paper, arXiv 1911.05329).

CONFIRMED: additive Gaussian artefacts of sigma 1, on training and test images. On what scale is not said. Our reading,
RECONSTRUCTED: sigma counts standard deviations of the pixels, as networks get them after normalisation; one of them is
taken as `LEVELS` grey levels in every channel. The artefacts are drawn once per image, belong to it like its other
pixels (every epoch and every trial sees the same), and results are rounded and clipped to 8 bits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# A quarter of 255: the channels of CIFAR-10 deviate by 0.247, 0.243 and 0.261 of it (measured on 20,000 images).
LEVELS = 64
_NOISE_STREAM = 4


def distorted(
    images: NDArray[np.uint8], index: NDArray[np.int64], sigma: float, seed: int, *, test: bool
) -> NDArray[np.uint8]:
    """Add to every image an artefact that is a function of (seed, training or test set, index) alone.

    Args:
        images: (N, H, W, channels).
        index: (N,), position of each image in its set.
        sigma: standard deviation of the artefacts, in standard deviations of the pixels; at least 0.
        seed: of the artefacts.
        test: the images are from the test set.
    """
    result = np.empty_like(images)
    for row, (image, number) in enumerate(zip(images, index.tolist(), strict=True)):
        draw = np.random.default_rng([seed, _NOISE_STREAM, int(test), number])
        artefact = draw.standard_normal(image.shape, np.float32) * np.float32(sigma * LEVELS)
        result[row] = np.clip(np.rint(image + artefact), 0, 255).astype(np.uint8)
    return result

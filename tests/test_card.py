"""What the card says of bringing a picture to the network is what evaluation does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hksd import data
from hksd.data.augment import batches_of
from hksd.data.settings import DataConfig
from hksd.deploy import export as exporting

Y, X = np.mgrid[0:40, 0:60]
SCENE = np.stack([X * 4, Y * 6, 255 - (X + Y) * 2, X * 4], -1).astype(np.uint8)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize(
    "knobs",
    [
        {"image_size": 16},
        {"image_size": 16, "streaming": True},
        {"image_size": 16, "streaming": True, "crop_scale": 0.3},
        {},
    ],
    ids=["resized", "streamed", "centre", "as it is"],
)
def test_the_code_of_the_card_brings_a_picture_to_the_network_as_evaluation_does(
    mode: str, knobs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.fromarray(SCENE if knobs else SCENE[:, :40]).convert(mode)
    for label in ("a", "b"):
        (tmp_path / "train" / label).mkdir(parents=True)
        for number in range(3):
            picture.save(tmp_path / "train" / label / f"{number}.png", exif=exif)
    config = DataConfig(name="folder", root=str(tmp_path), validation=0.4, **knobs)
    loaded = data.load(config)
    card = "\n".join(exporting._preparation(config, loaded.image_size, loaded.channels))
    (code,) = re.findall(r"```py\n(.*?)```", card, re.DOTALL)
    picture.save(tmp_path / "picture.jpg", "PNG", exif=exif)
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(code, found)
    batches = batches_of(loaded.validation, loaded, config, torch.device("cpu"), augment=False)
    expected = next(iter(batches.raw(1)))[0].float() / 255
    assert found["images"].shape == (1, loaded.channels, loaded.image_size, loaded.image_size)
    torch.testing.assert_close(found["images"], expected, rtol=0, atol=1e-6)
    assert ("resized to 16 x 16" in card) == (knobs.keys() <= {"image_size", "streaming"} and bool(knobs))
    assert ("the middle 16 x 16" in card) == ("crop_scale" in knobs)
    assert ("were not resized" in card) == (not knobs)
    assert "on white" in card
    assert "EXIF" in card
    assert ("gray" in card) == (mode == "LA")

"""The picture trained on is the one that a viewer shows, whatever the file and the way it is read."""

from __future__ import annotations

import io
import logging
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

from hksd import data
from hksd.data import crops, picture
from hksd.data.augment import batches_of
from hksd.data.raw import Form, open_picture, whole
from hksd.data.settings import DataConfig
from hksd.errors import DataError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # as `open_picture` does outside of pytest

Pixels = NDArray[np.uint8]
SIZE = 8
FORM = Form(SIZE, 3, True, "")
Y, X = np.mgrid[0:40, 0:60]
SCENE = np.stack([X * 4, Y * 6, 255 - (X + Y) * 2], -1).astype(np.uint8)  # no symmetry: each turn is another picture
RAMP = (X * 1000 + Y * 100).astype(np.uint16)
ALPHA = (X * 4).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def scene(mode: str = "RGB") -> Image.Image:
    image = Image.fromarray(SCENE)
    if mode == "LAB":
        return ImageCms.profileToProfile(
            image, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
        )
    if mode in ("RGBA", "LA"):
        image = image.convert(mode)
        image.putalpha(Image.fromarray(ALPHA))
        return image
    return image.convert(mode)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(
    width: int, height: int, depth: int, colour: int, rows: bytes, *, before: bytes = b"", after: bytes = b""
) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + head + before + pixels + after + chunk(b"IEND", b"")


def rows_of(values: NDArray[np.generic]) -> bytes:
    return b"".join(b"\0" + row.tobytes() for row in values)


def colour_png(values: NDArray[np.uint16], **chunks: bytes) -> bytes:
    """A PNG of 16 bits a channel; PIL writes none."""
    return png(values.shape[1], values.shape[0], 16, 2, rows_of(values.astype(">u2")), **chunks)


def deep_gray_with_alpha() -> bytes:
    """A PNG of 16 bits of gray and 16 of alpha; PIL writes none."""
    values = np.stack([RAMP, ALPHA.astype(np.uint16) * 257], -1).astype(">u2")
    return png(60, 40, 16, 4, rows_of(values))


def exif(orientation: int) -> Image.Exif:
    made = Image.Exif()
    made[0x0112] = orientation
    return made


def text(key: str) -> PngImagePlugin.PngInfo:
    """A text in a PNG, whose name is the writer's choice."""
    made = PngImagePlugin.PngInfo()
    made.add_text(key, "0.45")
    return made


def xmp(orientation: int) -> bytes:
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="{orientation}"/>'
        "</rdf:RDF></x:xmpmeta>"
    ).encode()


def reference(image: Image.Image) -> Pixels:
    """What a viewer shows: upright, on white; (H, W, 3)."""
    image = ImageOps.exif_transpose(image).convert("RGBA")
    return np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB"))


def by_pil(content: bytes) -> tuple[bytes, Pixels]:
    return content, reference(Image.open(io.BytesIO(content)))


def white_where(mask: NDArray[np.bool_], pixels: Pixels) -> Pixels:
    return np.where(mask[..., None], np.uint8(255), pixels)


def gray(values: NDArray[np.generic]) -> Pixels:
    return np.repeat(values.astype(np.uint8)[..., None], 3, -1)


def white_is_zero() -> bytes:
    """A TIFF of 16 bits whose tag of interpretation says so."""
    content = encoded(Image.fromarray(RAMP), "TIFF")
    tag = struct.pack("<HHI", 262, 3, 1)
    at = content.index(tag) + len(tag)
    return content[:at] + struct.pack("<H", 0) + content[at + 2 :]


def empty_alpha_bmp() -> bytes:
    """A BMP whose head (of version 4) gives a mask for alpha, in whose place all bytes are 0."""
    pixels = np.concatenate([SCENE[::-1, :, ::-1], np.zeros((40, 60, 1), np.uint8)], -1).tobytes()
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    head = struct.pack("<IiiHHIIiiII", 108, 60, 40, 1, 32, 3, len(pixels), 0, 0, 0, 0) + masks + b"BGRs" + bytes(48)
    return b"BM" + struct.pack("<IHHI", 14 + len(head) + len(pixels), 0, 0, 14 + len(head)) + head + pixels


SHADES = (X // 15).astype(np.uint8)  # 0 to 3
PACKED = (SHADES[:, ::4] << 6) | (SHADES[:, 1::4] << 4) | (SHADES[:, 2::4] << 2) | SHADES[:, 3::4]
WIDE = np.stack([RAMP, RAMP[::-1], RAMP // 2], -1)
TABLE = bytes(range(256))

KINDS: dict[str, Callable[[], tuple[bytes, Pixels]]] = {
    **{
        f"{kind} turned by EXIF {turn}": lambda kind=kind, turn=turn: by_pil(encoded(scene(), kind, exif=exif(turn)))
        for kind in ("JPEG", "PNG", "TIFF", "WEBP", "AVIF")
        for turn in range(1, 9)
    },
    **{
        f"PNG of mode {mode} with a text called {key}": lambda key=key, mode=mode: (
            encoded(scene(mode), "PNG", pnginfo=text(key)),
            reference(scene(mode)),
        )
        for key in ("gamma", "icc_profile", "transparency", "srgb", "exif", "progressive")
        for mode in ("RGB", "L", "P")
    },
    "JPEG of a phone with a second picture": lambda: by_pil(
        encoded(scene(), "MPO", save_all=True, append_images=[scene("L").convert("RGB")], exif=exif(6))
    ),
    "gray JPEG 2000 with alpha": lambda: by_pil(encoded(scene("LA"), "JPEG2000")),
    "RGBA AVIF": lambda: by_pil(encoded(scene("RGBA"), "AVIF")),
    "RGBA TIFF, premultiplied": lambda: by_pil(encoded(scene("RGBA"), "TIFF", tiffinfo={338: 1})),
    "TIFF of 1 bit, white is zero": lambda: by_pil(
        encoded(scene("1"), "TIFF", compression="group4", tiffinfo={262: 0})
    ),
    "animated PNG whose picture is not in the animation": lambda: by_pil(
        encoded(scene(), "PNG", save_all=True, default_image=True, append_images=[scene()])
    ),
    "JPEG turned by XMP": lambda: by_pil(encoded(scene(), "JPEG", xmp=xmp(8))),
    "PNG with EXIF behind its pixels": lambda: (
        png(60, 40, 8, 2, rows_of(SCENE), after=chunk(b"eXIf", exif(6).tobytes()[6:])),
        np.rot90(SCENE, -1),
    ),
    "damaged EXIF": lambda: (encoded(scene(), "PNG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"), SCENE),
    "unknown orientation": lambda: (encoded(scene(), "PNG", exif=exif(9)), SCENE),
    "damaged colour profile": lambda: (encoded(scene(), "PNG", icc_profile=b"none"), SCENE),
    "large colour profile": lambda: (encoded(scene(), "PNG", icc_profile=bytes(1 << 21)), SCENE),
    "RGBA PNG": lambda: by_pil(encoded(scene("RGBA"), "PNG")),
    "RGBA WebP": lambda: by_pil(encoded(scene("RGBA"), "WEBP", lossless=True)),
    "RGBA TIFF": lambda: by_pil(encoded(scene("RGBA"), "TIFF")),
    "turned RGBA": lambda: by_pil(encoded(scene("RGBA"), "PNG", exif=exif(5))),
    "gray with alpha": lambda: by_pil(encoded(scene("LA"), "PNG")),
    "palette with one transparent colour": lambda: by_pil(encoded(scene("P"), "PNG", transparency=7)),
    "palette with a table of alpha": lambda: by_pil(encoded(scene("P"), "PNG", transparency=TABLE)),
    "PNG with a transparent gray": lambda: by_pil(encoded(scene("L"), "PNG", transparency=100)),
    "PNG with a transparent colour": lambda: by_pil(encoded(scene(), "PNG", transparency=tuple(SCENE[3, 4].tolist()))),
    "PNG of 1 bit with a transparent one": lambda: by_pil(encoded(scene("1"), "PNG", transparency=1)),
    "PNG of 2 bits with a transparent gray": lambda: (
        png(60, 40, 2, 0, rows_of(PACKED), before=chunk(b"tRNS", struct.pack(">H", 1))),
        white_where(SHADES == 1, gray(SHADES * 85)),
    ),
    "PNG of 16 bits": lambda: (encoded(Image.fromarray(RAMP), "PNG"), gray(RAMP >> 8)),
    "PNG of 16 bits with a transparent gray": lambda: (
        png(60, 40, 16, 0, rows_of(RAMP.astype(">u2")), before=chunk(b"tRNS", struct.pack(">H", int(RAMP[5, 5])))),
        white_where(RAMP[5, 5] == RAMP, gray(RAMP >> 8)),
    ),
    "PNG of 16 bits of gray with alpha": lambda: by_pil(deep_gray_with_alpha()),
    "PNG of 16 bits in colour": lambda: (colour_png(WIDE), (WIDE >> 8).astype(np.uint8)),
    "PNG of 16 bits with a transparent colour": lambda: (
        colour_png(WIDE, before=chunk(b"tRNS", WIDE[3, 50].astype(">u2").tobytes())),
        white_where(((WIDE[3, 50] >> 8) == (WIDE >> 8)).all(-1), (WIDE >> 8).astype(np.uint8)),
    ),
    "PGM of 16 bits": lambda: (encoded(Image.fromarray(RAMP), "PPM"), gray(RAMP >> 8)),
    "TIFF of 16 bits": lambda: (encoded(Image.fromarray(RAMP), "TIFF"), gray(RAMP >> 8)),
    "TIFF of 16 bits, white is zero": lambda: (white_is_zero(), gray(255 - (RAMP >> 8))),
    "CMYK JPEG": lambda: by_pil(encoded(scene("CMYK"), "JPEG")),
    "CMYK TIFF": lambda: by_pil(encoded(scene("CMYK"), "TIFF")),
    "LAB TIFF": lambda: by_pil(encoded(scene("LAB"), "TIFF")),
    "YCbCr TIFF": lambda: by_pil(encoded(scene("YCbCr"), "TIFF")),
    "TIFF of several pages": lambda: (
        encoded(scene(), "TIFF", save_all=True, append_images=[scene("L")]),
        SCENE,
    ),
    "animated GIF": lambda: by_pil(encoded(scene("P"), "GIF", save_all=True, append_images=[scene("L")])),
    "GIF with a transparent colour": lambda: by_pil(encoded(scene("P"), "GIF", transparency=7)),
    "animated PNG": lambda: (encoded(scene(), "PNG", save_all=True, append_images=[scene("L")]), SCENE),
    "animated WebP": lambda: (
        encoded(scene(), "WEBP", lossless=True, save_all=True, append_images=[scene("L")]),
        SCENE,
    ),
    "BMP whose fourth byte is empty": lambda: (empty_alpha_bmp(), SCENE),
    "JPEG 2000": lambda: by_pil(encoded(scene(), "JPEG2000")),
    "AVIF": lambda: by_pil(encoded(scene(), "AVIF")),
    "PPM": lambda: (encoded(scene(), "PPM"), SCENE),
}


def resized(shown: Pixels, size: int = SIZE) -> Pixels:
    return np.asarray(Image.fromarray(shown).resize((size, size), Image.Resampling.BILINEAR))


@pytest.fixture(scope="module")
def made() -> dict[str, tuple[bytes, Pixels]]:
    return {name: make() for name, make in KINDS.items()}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, made: dict[str, tuple[bytes, Pixels]]) -> Path:
    """One picture of each kind in class folders, and the same in parquet."""
    folder = tmp_path_factory.mktemp("kinds")
    contents = [content for content, _ in made.values()]
    for number, content in enumerate(contents):
        place = folder / "folders" / "train" / f"class{number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        # The content tells what a file is, not its suffix.
        (place / f"{number:03}.jpg").write_bytes(content)
    labels = [number % 2 for number in range(len(contents))]
    (folder / "parquet").mkdir()
    pq.write_table(pa.table({"image": contents, "label": labels}), folder / "parquet" / "train.parquet")
    return folder


def loaded(where: Path, **knobs: object) -> dict[int, Pixels]:
    """Pixels of each image of a data set, by its number in `KINDS`."""
    config = DataConfig(name="folder", root=str(where), image_size=SIZE, validation=0.25, **knobs)
    found, images = data.load(config), {}
    for split in (found.train, found.validation):
        pixels = [part for part, _ in batches_of(split, found, config, torch.device("cpu"), augment=False).raw(7)]
        images |= dict(zip(split.index.tolist(), torch.cat(pixels).permute(0, 2, 3, 1).numpy(), strict=True))
    if where.name == "folders":  # sorted by class there
        order = sorted(range(len(images)), key=lambda number: (number % 2, number))
        images = {order[row]: image for row, image in images.items()}
    return images


def test_each_kind_is_read_as_a_viewer_shows_it_in_memory_streamed_and_from_parquet(
    root: Path, made: dict[str, tuple[bytes, Pixels]]
) -> None:
    ways = [loaded(root / "folders"), loaded(root / "folders", streaming=True), loaded(root / "parquet")]
    for number, (name, (_, shown)) in enumerate(made.items()):
        for way in ways:
            np.testing.assert_array_equal(way[number], resized(shown), err_msg=name)


@pytest.mark.parametrize("name", KINDS)
def test_parts_are_those_of_the_shown_picture(name: str, made: dict[str, tuple[bytes, Pixels]]) -> None:
    content, shown = made[name]
    upright = Image.fromarray(shown)
    for cut in (
        lambda picture: crops.centre("x", picture, FORM),
        lambda picture: crops.random_part("x", picture, FORM, 0.3, 5),
    ):
        # A JPEG is decoded at a part of its size, which differs a little.
        difference = np.abs(cut(open_picture("x", content)).astype(int) - cut(upright))
        assert difference.max() <= (6 if content[:2] == b"\xff\xd8" else 0)


@pytest.mark.parametrize("name", KINDS)
def test_a_file_that_is_cut_off_is_damaged(name: str, made: dict[str, tuple[bytes, Pixels]]) -> None:
    content = made[name][0]
    for share in (0.1, 0.25):  # inside the first frame of all
        with pytest.raises(DataError, match=r"^x: .*damaged"):
            whole("x", open_picture("x", content[: max(20, int(len(content) * share))]), FORM)


def test_a_size_is_judged_as_it_is_shown(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / "train" / label).mkdir(parents=True)
        for number in range(4):
            (tmp_path / "train" / label / f"{number}.jpg").write_bytes(encoded(scene(), "JPEG", exif=exif(6)))
    with pytest.raises(DataError, match="40 x 60 pixels, but images must be square"):
        data.load(DataConfig(name="folder", root=str(tmp_path)))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "I;16", "16 bits with alpha"])
def test_pictures_without_colour_are_gray(mode: str, tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / "train" / label).mkdir(parents=True)
        for number in range(4):
            (tmp_path / "train" / label / f"{number}.png").write_bytes(
                deep_gray_with_alpha()
                if mode == "16 bits with alpha"
                else encoded(Image.fromarray(RAMP) if mode == "I;16" else scene(mode), "PNG")
            )
    found = data.load(DataConfig(name="folder", root=str(tmp_path), image_size=SIZE))
    assert found.channels == 1
    if mode == "16 bits with alpha":
        shown = Image.fromarray(by_pil(deep_gray_with_alpha())[1])
    elif mode == "I;16":
        shown = Image.fromarray((RAMP >> 8).astype(np.uint8))
    else:
        shown = Image.fromarray(reference(scene(mode)))
    expected = np.asarray(shown.convert("L").resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(found.train.images[0, ..., 0], expected)


# What is said


def folders_of(root: Path, contents: list[bytes], suffix: str = "png") -> Path:
    for number, content in enumerate(contents):
        place = root / "train" / f"class{number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.{suffix}").write_bytes(content)
    return root


@pytest.mark.parametrize("streaming", [False, True])
def test_what_is_unusual_is_told_in_one_line_with_numbers(
    streaming: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = encoded(scene(), "PNG")
    opaque = encoded(scene().convert("RGBA"), "PNG", gamma=1 / 2.2)
    animated, transparent = KINDS["animated GIF"]()[0], KINDS["RGBA PNG"]()[0]
    profile = encoded(scene(), "PNG", icc_profile=b"Adobe RGB (1998)")
    dark = encoded(Image.fromarray(RAMP // 20), "PNG")
    root = folders_of(tmp_path, [animated, animated, transparent, profile, dark] + [opaque] * 2 + [plain] * 13)
    shutil.copytree(root / "train", root / "test")
    config = DataConfig(name="folder", root=str(root), image_size=SIZE, validation=0.1, streaming=streaming, seed=2)

    def told() -> list[str]:
        lines = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return lines

    with caplog.at_level(logging.WARNING, "hksd"):
        notes = list(data.load(config).notes)
        assert told() == notes
        data.load_test(config)
    for part, lines in (("train", notes), ("test", told())):
        for count, text in ((2, "animated"), (1, "transparent"), (1, "profile"), (1, "nearly black")):
            (line,) = (line for line in lines if text in line)
            assert f"{count} of 20 images" in line
            assert str(root / part) in line
        assert len(lines) == 4


@pytest.mark.parametrize("streaming", [False, True])
def test_test_images_whose_colour_is_dropped_are_counted(
    streaming: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = folders_of(tmp_path / "set", [encoded(scene("L"), "PNG")] * 6)
    gray_in_three = encoded(scene("L").convert("RGB"), "PNG")
    folders_of(tmp_path / "other", [encoded(scene(), "PNG"), gray_in_three, encoded(scene("LA"), "PNG")])
    (tmp_path / "other" / "train").rename(root / "test")
    config = DataConfig(name="folder", root=str(root), image_size=SIZE, validation=0.25, streaming=streaming)
    with caplog.at_level(logging.WARNING, "hksd"):
        assert data.load(config).notes == ()
        assert data.load_test(config).channels == 1
    (line,) = (record.getMessage() for record in caplog.records if "are coloured" in record.getMessage())
    assert "1 of 3 images read are coloured, but the training images are gray" in line


def test_what_was_said_of_kept_images_is_said_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = folders_of(tmp_path / "set", [KINDS["RGBA PNG"]()[0]] * 6)
    config = DataConfig(name="folder", root=str(root), image_size=SIZE, validation=0.25)
    first = data.load(config, tmp_path / "kept")
    caplog.clear()
    with caplog.at_level(logging.WARNING, "hksd"):
        again = data.load(config, tmp_path / "kept")
    assert not again.train.images.flags.writeable
    assert first.notes == again.notes == tuple(record.getMessage() for record in caplog.records)
    assert "6 of 6" in again.notes[0]


def test_streamed_pictures_that_are_shown_otherwise_than_they_are_stored_have_a_fingerprint_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fingerprint() -> str:
        return data.load(
            DataConfig(name="folder", root=str(root), image_size=SIZE, validation=0.25, streaming=True)
        ).fingerprint

    root = folders_of(tmp_path, [encoded(scene(), "JPEG", exif=exif(6))] * 6)
    turned = fingerprint()
    monkeypatch.setattr(picture, "_orientation", lambda _: 1)
    assert fingerprint() != turned


# Large, strange and hostile files


def test_a_large_scan_is_read() -> None:
    """As many pixels as PIL refuses by default."""
    side = 14_000
    content = png(side, side, 1, 0, (b"\0" + b"\xf0" * (side // 8)) * side)
    found = whole("x", open_picture("x", content), Form(16, 1, True, ""))
    assert abs(int(found.mean()) - 127) <= 1


def test_what_is_too_large_for_memory_is_told_with_a_cure_and_a_jpeg_decoded_at_a_part_of_its_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(picture, "PIXELS", 700)  # of 2,400
    for kind, options in (("PNG", {}), ("JPEG", {"progressive": True})):
        with pytest.raises(DataError, match=r"x: 60 x 40 pixels are too large.* make the image smaller"):
            whole("x", open_picture("x", encoded(scene(), kind, **options)), FORM)
    opened = open_picture("x", encoded(scene(), "JPEG", exif=exif(6), quality=95))
    found = whole("x", opened, FORM)
    assert opened.size == (30, 20)
    assert np.abs(found.astype(int) - resized(np.rot90(SCENE, -1))).max() < 16
    part = crops.random_part("x", open_picture("x", encoded(scene(), "JPEG")), FORM, 0.9, 1)
    assert part.shape == (SIZE, SIZE, 3)


def test_images_that_do_not_fit_into_memory_together_are_told_with_a_cure(tmp_path: Path) -> None:
    root = folders_of(tmp_path, [encoded(scene(), "PNG")] * 4)
    with pytest.raises(DataError, match=r"GB; set a smaller data.image_size"):
        data.load(DataConfig(name="folder", root=str(root), image_size=1 << 24))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file is empty"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "this is no WEBP, PNG, JPEG"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIF or a film"),
        (b"<html>not found</html>", "this is no WEBP, PNG, JPEG"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 9\n", "Git LFS.*git lfs pull"),
    ],
)
def test_what_is_no_picture_is_told_for_what_it_is(content: bytes, said: str) -> None:
    with pytest.raises(DataError, match=f"^x: .*{said}"):
        open_picture("x", content)


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(sorted(KINDS)), draw=st.data())
def test_damaged_bytes_give_an_image_or_a_told_error(
    name: str, draw: st.DataObject, made: dict[str, tuple[bytes, Pixels]]
) -> None:
    content = bytearray(made[name][0])
    places = st.integers(0, len(content) - 1) | st.integers(0, min(400, len(content) - 1))
    for place, value in draw.draw(st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=8)):
        content[place] = value
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(picture, "PIXELS", 1 << 20)  # a head may tell any size
        try:
            opened = open_picture("x", bytes(content))
            found = whole("x", opened, FORM)
            picture.Notes().see("x", opened, 3)
        except DataError as error:
            assert str(error).startswith("x: ")
        else:
            assert found.shape == (SIZE, SIZE, 3)

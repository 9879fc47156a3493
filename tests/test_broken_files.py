"""Files as they come: each is evaluated with the right pixels, or named with its reason."""

import io
import logging
import os
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from papr.images import ImageError, find_images, load_image

WIDTH, HEIGHT = 24, 16


def blocks() -> np.ndarray:
    """(16, 24, 3) uint8: blocks of 8 x 8 pixels in six colours, which a JPEG hardly changes."""
    colours = np.random.default_rng(3).integers(0, 256, (2, 3, 3), dtype=np.uint8)
    return colours.repeat(8, 0).repeat(8, 1)


def encoded(kind: str, picture: np.ndarray | Image.Image | None = None, **options) -> bytes:
    image = picture if isinstance(picture, Image.Image) else None
    image = image or Image.fromarray(blocks() if picture is None else picture)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def png_by_hand(width: int, height: int, depth: int, colour: int, data: bytes) -> bytes:
    """A PNG as its specification says, without Pillow. `data`: its lines, each with its filter."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def levels16() -> np.ndarray:
    return np.arange(WIDTH * HEIGHT, dtype=np.uint16).reshape(HEIGHT, WIDTH) * 170


def good_files() -> dict[str, tuple[bytes, np.ndarray, int]]:
    """Name -> content, the pixels it means, worked out without Pillow's conversions, tolerance."""
    rgb, grey = blocks(), blocks()[..., 0]
    greys = np.stack([grey] * 3, -1)
    wide16 = levels16()
    ink = np.random.default_rng(4).integers(0, 256, (1, 3, 4), dtype=np.uint8)
    ink = ink.repeat(HEIGHT, 0).repeat(8, 1)
    paper = (255 - ink[..., :3].astype(float)) * (255 - ink[..., 3:].astype(float)) / 255
    palette = rgb.reshape(-1, 3)[[0, 8, 16, 8 * WIDTH, 8 * WIDTH + 8, 8 * WIDTH + 16]]
    numbers = np.arange(6, dtype=np.uint8).reshape(2, 3).repeat(8, 0).repeat(8, 1)
    indexed = Image.fromarray(numbers)  # mode L, whose levels become numbers of colours
    indexed.putpalette(palette.tobytes())
    clear = np.dstack([rgb, np.linspace(0, 255, WIDTH * HEIGHT).reshape(HEIGHT, WIDTH)])
    other = Image.fromarray(255 - rgb)
    lines16 = b"".join(b"\0" + line.astype(">u2").tobytes() for line in wide16)
    colours16 = np.dstack([wide16, wide16[::-1], wide16[:, ::-1]])
    lines48 = b"".join(b"\0" + line.astype(">u2").tobytes() for line in colours16)
    bits = (grey > 127).astype(np.uint8)
    lines1 = b"".join(b"\0" + np.packbits(line).tobytes() for line in bits)
    scaled = np.stack([wide16 // 257] * 3, -1)
    return {
        "plain.jpg": (encoded("JPEG", quality=95, subsampling=0), rgb, 4),
        "progressive.jpeg": (encoded("JPEG", progressive=True, quality=95, subsampling=0), rgb, 4),
        "plain.png": (encoded("PNG"), rgb, 0),
        "plain.webp": (encoded("WEBP", lossless=True), rgb, 0),
        "plain.bmp": (encoded("BMP"), rgb, 0),
        "lzw.tiff": (encoded("TIFF", compression="tiff_lzw"), rgb, 0),
        "png by content.jpg": (encoded("PNG"), rgb, 0),
        "grey.png": (encoded("PNG", grey), greys, 0),
        "grey.jpg": (encoded("JPEG", grey, quality=95), greys, 4),
        "cmyk.jpg": (encoded("JPEG", Image.fromarray(ink, "CMYK"), quality=100), paper, 6),
        "cmyk.tif": (encoded("TIFF", Image.fromarray(ink, "CMYK")), paper, 2),
        "16 bits.png": (png_by_hand(WIDTH, HEIGHT, 16, 0, lines16), scaled, 0),
        "16 bits.tif": (encoded("TIFF", wide16), scaled, 0),
        "48 bits.png": (png_by_hand(WIDTH, HEIGHT, 16, 2, lines48), colours16 // 257, 1),
        "1 bit.png": (png_by_hand(WIDTH, HEIGHT, 1, 0, lines1), np.stack([bits * 255] * 3, -1), 0),
        "palette, transparent.png": (encoded("PNG", indexed, transparency=b"\x00\x80"), rgb, 0),
        "transparent.png": (encoded("PNG", clear.astype(np.uint8)), rgb, 0),
        "animated.gif": (encoded("GIF", indexed, save_all=True, append_images=[other]), rgb, 0),
        "animated.webp": (
            encoded("WEBP", save_all=True, append_images=[other], lossless=True),
            rgb,
            0,
        ),
        "turned.jpg": (
            encoded("JPEG", exif=turned(6), quality=95, subsampling=0),
            np.rot90(rgb, -1),
            4,
        ),
        "mirrored.png": (encoded("PNG", exif=turned(2)), rgb[:, ::-1], 0),
        "turned.webp": (encoded("WEBP", lossless=True, exif=turned(3)), rgb[::-1, ::-1], 0),
        "turned.tif": (encoded("TIFF", exif=turned(8)), np.rot90(rgb), 0),
        "turned by nonsense.jpg": (
            encoded("JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff", quality=95, subsampling=0),
            rgb,
            4,
        ),
        "one pixel.png": (encoded("PNG", rgb[:1, :1]), rgb[:1, :1], 0),
    }


def broken_files() -> dict[str, tuple[bytes, str]]:
    """Name -> content, what its reason says."""
    noise = np.random.default_rng(5).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    halves = {kind: encoded(kind, noise) for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP")}
    found = {
        f"half.{kind.lower()}": (data[: len(data) // 2], "cannot read the image")
        for kind, data in halves.items()
        if kind != "JPEG"
    }
    jpeg, png = halves["JPEG"], halves["PNG"]
    hole = bytearray(png)
    hole[len(png) // 2 : len(png) // 2 + 40] = bytes(40)
    twelve = bytearray(encoded("TIFF", levels16()))
    at = twelve.index(struct.pack("<HHI", 258, 3, 1)) + 8  # bits per sample, one short
    twelve[at : at + 2] = struct.pack("<H", 12)
    return {
        **found,
        "half.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "no end.jpg": (jpeg[:-40], "truncated"),
        "head only.jpg": (jpeg[:30], "cannot read the image"),
        "hole.png": (bytes(hole), "cannot read the image"),
        "empty.jpg": (b"", "it is empty"),
        "text.jpg": (b"<html>404</html>", "it is none, or of a kind that Pillow does not know"),
        "bomb.png": (png_by_hand(20000, 20000, 8, 2, b""), "decompression bomb"),
        "large and cut.png": (png_by_hand(9000, 9000, 8, 0, b"\0"), "cannot read the image"),
        "floats.tif": (encoded("TIFF", np.full((8, 8), 0.5, np.float32)), "mode F of unknown"),
        "32 bits.tif": (encoded("TIFF", np.full((8, 8), 9, np.int32)), "mode I of unknown range"),
        "12 bits.tif": (bytes(twelve), "expected 8 or 16 bits, got 12"),
    }


GOOD, BROKEN = good_files(), broken_files()


@pytest.mark.parametrize("name", GOOD)
def test_pixels_are_those_the_file_means(name: str) -> None:
    data, expected, tolerance = GOOD[name]
    found = np.asarray(load_image(data)).astype(float)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_read_is_named_with_its_reason(name: str, tmp_path: Path) -> None:
    data, reason = BROKEN[name]
    (tmp_path / name).write_bytes(data)
    for source in (data, tmp_path / name):
        with pytest.raises(ImageError) as caught:
            load_image(source, name)
        message = str(caught.value)
        assert message.startswith(f"cannot read the image {name}: ")
        assert reason in message
        assert "\n" not in message
        assert " at 0x" not in message  # the same whenever it is read


def test_paths_that_are_no_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "link.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")  # opening it would wait for ever
    reasons = {
        "folder.jpg": "it is a folder",
        "link.jpg": "it is a link to nowhere.jpg, which does not exist",
        "pipe.jpg": "it is no regular file",
        "gone.jpg": "No such file",
    }
    for name, reason in reasons.items():
        with pytest.raises(ImageError, match=reason):
            load_image(tmp_path / name)
    assert find_images([tmp_path]).images == [tmp_path / "link.jpg", tmp_path / "pipe.jpg"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(encoded("PNG"))
    (tmp_path / "secret.png").chmod(0)
    with pytest.raises(ImageError, match="Permission denied"):
        load_image(tmp_path / "secret.png")


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Cut off, or some bytes changed, most often near the beginning."""
    if rng.random() < 0.5:
        return data[: rng.randrange(len(data))]
    found = bytearray(data)
    for _ in range(rng.choice([1, 1, 3, 20])):
        found[rng.randrange(min(len(data), rng.choice([64, 400, len(data)])))] = rng.randrange(256)
    return bytes(found)


FUZZED = {
    "jpg": lambda: encoded("JPEG", exif=turned(6)),
    "progressive": lambda: encoded("JPEG", progressive=True),
    "png": lambda: encoded("PNG", exif=turned(3)),
    "16 bits": lambda: GOOD["16 bits.png"][0],
    "palette": lambda: GOOD["palette, transparent.png"][0],
    "webp": lambda: encoded("WEBP", exif=turned(6)),
    "gif": lambda: GOOD["animated.gif"][0],
    "tiff": lambda: encoded("TIFF", compression="tiff_lzw", exif=turned(6)),
    "jpeg in tiff": lambda: encoded("TIFF", compression="jpeg"),
    "bmp": lambda: encoded("BMP"),
}


@pytest.mark.parametrize("name", FUZZED)
def test_hostile_bytes_never_raise_anything_else(
    name: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cut file is refused or complete; a changed one is refused or an image; all in silence."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10**6)  # a changed size costs no second
    data = FUZZED[name]()
    expected, rng, refused = np.asarray(load_image(data)), random.Random(0), 0
    for _ in range(150):
        broken = damaged(data, rng)
        try:
            found = np.asarray(load_image(broken))
        except ImageError:
            refused += 1
            continue
        assert found.ndim == 3
        assert found.shape[2] == 3
        if data.startswith(broken):
            assert np.array_equal(found, expected)
    assert refused > 30
    assert capfd.readouterr() == ("", "")


def test_exif_that_breaks_pillow_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(image: Image.Image) -> None:
        raise struct.error("required argument is not an integer")  # what fuzzing found

    monkeypatch.setattr("papr.images.ImageOps.exif_transpose", fail)
    assert np.array_equal(np.asarray(load_image(encoded("PNG"))), blocks())


def test_pillow_logs_go_where_the_user_sends_them(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        logging.getLogger("PIL.TiffImagePlugin").error("more samples than can be decoded")
    assert "more samples" in caplog.text


def mixed_folder(folder: Path) -> set[str]:
    """All of the files above and stranger ones; names of those that have pixels."""
    folder.mkdir()
    for name, (data, *_) in {**GOOD, **BROKEN}.items():
        (folder / name).write_bytes(data)
    (folder / "line.png").write_bytes(encoded("PNG", np.zeros((5000, 1), np.uint8)))
    (folder / "folder.jpg").mkdir()
    (folder / "folder.jpg" / "inside.png").write_bytes(encoded("PNG"))
    (folder / "link.jpg").symlink_to("nowhere.jpg")
    (folder / "notes.txt").write_text("not an image")
    return {*GOOD, "folder.jpg/inside.png"}


def test_one_evaluation_of_all_of_them(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pyarrow", reason="needs the extra: eval")
    import tiny_data
    from papr.evaluate import evaluate
    from papr.evaluate.runs import Folder

    good = mixed_folder(tmp_path / "files")
    host = tiny_data.host()
    report = evaluate(
        host, tmp_path / "files", tiny_data.KEEPS[:1], tmp_path / "run", batch=7, workers=1
    )
    reasons = {sample.id: sample.reason for sample in report.skipped}
    assert set(reasons) == {*BROKEN, "line.png", "link.jpg"}
    assert "expected an image at most 32 times as long as wide" in reasons["line.png"]
    assert "a link to nowhere.jpg" in reasons["link.jpg"]
    assert report.ignored == ["notes.txt"]
    (rows,) = Folder(tmp_path / "run").tables()
    for result in report.results:
        named = [
            row["id"] for row in rows.to_pylist() if row["configuration"] == result.configuration
        ]
        assert sorted(named) == sorted(good)
    assert "Traceback" not in "".join(capfd.readouterr())


def test_each_row_of_a_batch_has_its_own_pixels(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="needs the extra: eval")
    import tiny_data
    from papr.evaluate import open_source
    from papr.evaluate.loading import Plan, loader
    from papr.evaluate.preparing import timm_transform

    good = mixed_folder(tmp_path / "files")
    source, plan, prepare = (
        open_source(tmp_path / "files", 3),
        Plan(7, 7),
        timm_transform(tiny_data.host()),
    )
    seen = set()
    for batch in loader(source, plan, plan.parts(source), prepare, workers=0):
        for name, pixels in zip(batch.ids, batch.pixels if batch.ids else [], strict=True):
            _, picture, tolerance = GOOD[name] if name in GOOD else (b"", blocks(), 0)
            plain = Image.fromarray(np.ascontiguousarray(picture).round().astype(np.uint8))
            expected = prepare.transform(plain)
            off = (pixels - expected).abs().amax() * max(prepare.std) * 255
            assert off <= 4 * tolerance + 1e-3, name
            seen.add(name)
    assert seen == good


def test_a_transform_that_fails_is_named() -> None:
    pytest.importorskip("pyarrow", reason="needs the extra: eval")
    from papr.evaluate import ImageFile
    from papr.evaluate.sources import Item

    def fail(image: Image.Image) -> None:
        raise ValueError("height and width must be > 0\nand so on")

    prepare = ImageFile(fail, (0.0,) * 3, (1.0,) * 3)
    with pytest.raises(ImageError, match=r"^cannot prepare the image a\.png: ValueError: .* > 0$"):
        prepare(Item("a.png", None, encoded("PNG")))

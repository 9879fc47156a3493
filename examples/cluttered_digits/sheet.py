"""Draw some held-out pictures, their significance maps and the patches that stay: pictures.jpg."""

import argparse
from pathlib import Path

import torch
from PIL import Image

import data
import papr
from evaluate import HERE, ROW_OF_PICTURES, networks
from papr.draw import contact_sheet, heat_map, kept_patches, panel
from papr.files import write_image


def main() -> None:
    """Write the contact sheet."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--count", type=int, default=4, help="pictures (default 4)")
    options.add_argument("--keep", type=float, default=0.3, help="fraction that stays (0.3)")
    options.add_argument("--out", type=Path, default=HERE / "pictures.jpg", help="where to")
    args = options.parse_args()
    host, proposal = networks()
    papr.prune(host, args.keep, proposal)
    pixels, classes, _ = data.batch("held-out", ROW_OF_PICTURES, range(args.count))
    with torch.inference_mode():
        answers = host(pixels).argmax(1)
    chosen = papr.selection(host)
    rows = []
    for i, mask in enumerate(chosen.mask()):
        array, _, _ = data.picture("held-out", ROW_OF_PICTURES, i)
        image = Image.fromarray(array).resize((144, 144), Image.Resampling.BICUBIC)
        said = f"says {answers[i]}, is {classes[i]}"
        rows.append(
            panel(
                [
                    (f"picture {i}", image),
                    ("significance", heat_map(image, chosen.scores[i])),
                    (said, kept_patches(image, mask)),
                ]
            )
        )
    write_image(args.out, contact_sheet(rows))
    print(f"{args.count} pictures at keep {args.keep:g} in {args.out}")


if __name__ == "__main__":
    main()

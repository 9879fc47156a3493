"""Writes the tables of README.md and docs/ anew from the stored results, and the plot.

Run it after a benchmark whose figures they show. A table stands between `<!-- name -->` and
`<!-- end of name -->`; a test holds every one to what is stored.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import photographs_shown as photographs
from common import stored

HERE = Path(__file__).parent
KEEPS = ("0.7", "0.5", "0.3")
GLANCE, LITE0 = "glance", "efficientnet_lite0 at 160 px"
NAMES = {
    GLANCE: "**glance** (default)",
    LITE0: "`efficientnet_lite0`, at 160 px",
    "efficientnet_lite0 at 224 px": "the same at 224 px",
    "softcam of efficientnet_lite0 at 160 px": 'the same at 160 px, `score="softcam"`',
    "centre": "centre of the picture",
    "smaller picture": "whole, shrunk to as many pixels",
    "smaller picture, enlarged": "whole, shrunk and enlarged again",
}
#: The kinds of pictures that the README shows.
KINDS = ("as they are", "off centre")


def rows(*lines: list[str]) -> str:
    """A Markdown table whose first line is its head."""
    written = ["".join(f"| {cell} " if cell else "| " for cell in line) for line in lines]
    written.insert(1, "|---" * len(lines[0]))
    return "\n".join(line + "|" for line in written)


def times(speedup: list[float]) -> str:
    """Median and quartiles of a speed-up."""
    return "{:.2f}x ({:.2f}-{:.2f})".format(*speedup)


def measured(table: str, name: str) -> str:
    """A table, and below it the command that made the file its figures are of, and on what."""
    found = stored(name)
    torch = found["environment"]["torch"].partition("+")[0]
    return f"{table}\n\n*`{found['command']}` on {found['environment']['device']}, torch {torch}*"


def speed_cpu() -> str:
    """ViT-B/16 on a CPU: PaPr in two dtypes, and the smaller picture."""
    found = stored("speed-cpu")
    dense = next(row for row in found["rows"] if row["keep"] == 1)
    lines = []
    for keep in KEEPS:
        one, half = (
            next(r for r in found["rows"] if r["keep"] == float(keep) and r["dtype"] == dtype)
            for dtype in ("float32", "bfloat16")
        )
        other = next(
            r for r in found["smaller"] if r["keep"] == float(keep) and r["dtype"] == "float32"
        )
        macs = f"{one['gmacs_host']:.2f} + {one['gmacs_proposal']:.2f}"
        lines.append(
            [
                keep,
                f"{macs} (dense {dense['gmacs_host']:.2f})",
                f"{one['ideal']:.2f}x",
                times(one["speedup"]),
                times(half["speedup"]),
                f"{times(other['speedup'])}: {other['side']} px, {other['patches']} patches",
            ]
        )
    head = ["keep", "GMACs host + proposal", "ideal from MACs", "float32", "bfloat16"]
    return measured(rows([*head, "dense on a smaller picture, float32"], *lines), "speed-cpu")


def pyramid() -> str:
    """Swin-B and ConvNeXt-B on a CPU."""
    names = {"swin_base_patch4_window7_224": "Swin-B", "convnext_base": "ConvNeXt-B"}
    lines = []
    for row in stored("pyramid_speed-cpu")["rows"]:
        if row["keep"] == 1:
            dense = row
            continue
        macs = f"{row['gmacs_host']:.2f} + {row['gmacs_proposal']:.2f}"
        lines.append(
            [
                names[row["model"]] + (', `attention="kept"`' if "attention" in row else ""),
                f"{row['keep']:g}",
                f"{macs} (dense {dense['gmacs_host']:.2f})",
                f"{row['ideal']:.2f}x",
                times(row["speedup"]),
            ]
        )
    head = ["host", "keep", "GMACs host + proposal", "ideal from MACs", "measured"]
    return measured(rows(head, *lines), "pyramid_speed-cpu")


def merging() -> str:
    """Merging, pooling, a second cut on a CPU."""
    lines = [
        [
            row["name"],
            f"{row['gmacs_host']:.2f} + {row['gmacs_proposal']:.2f}",
            f"{row['ideal']:.2f}x",
            times(row["speedup"]),
        ]
        for row in stored("merging_speed-cpu")["rows"]
    ]
    head = ["", "GMACs host + proposal", "ideal from MACs", "measured"]
    return measured(rows(head, *lines), "merging_speed-cpu")


def speed_gpu() -> str:
    """What one H200 measured when EfficientNet-Lite0 was the default."""
    figures = stored("speed-h200")["measured"]

    def speed(key: str, which: str) -> str:
        found = figures.get(key, {}).get("speedup", {})
        return f"{found[which][0]:.2f}x" if which in found else ""

    def line(host: str, model: str, batch: int, keep: str, which: str = "papr") -> list[str]:
        eager, compiled = (f"{how} {model} b{batch}" for how in ("eager", "compiled"))
        return [host, str(batch), keep] + [
            speed(key, f"{who}{keep}") for who in (which, "bare") for key in (eager, compiled)
        ]

    base, large = "vit_base_patch16_224", "vit_large_patch16_224"
    return rows(
        ["host", "batch", "keep", "eager", "compiled", "limit, eager", "limit, compiled"],
        *(line("ViT-B/16", base, 256, keep) for keep in KEEPS),
        *(line("ViT-B/16", base, batch, "0.5") for batch in (32, 8, 1)),
        *(line("ViT-L/16", large, 256, keep) for keep in KEEPS),
        line("ViT-L/16", large, 32, "0.5"),
        line("Swin-B", "swin_base", 128, "0.5"),
        line('Swin-B, `attention="kept"`', "swin_base", 128, "0.5", "kept"),
        line("ConvNeXt-B", "convnext_base", 128, "0.5"),
    )


def quality(kinds: tuple[str, ...], cell: Callable[[list[float]], str]) -> Iterator[list[str]]:
    """The whole picture, then every way to show a part of it."""
    pictures = [stored("masked_accuracy")["pictures"][kind] for kind in kinds]
    none = [""] * (len(KEEPS) - 1)
    yield ["whole picture", *(text for p in pictures for text in (cell(p["whole"]), *none))]
    for name in pictures[0]["top1"]:
        found = [cell(p["top1"][name][keep]) for p in pictures for keep in KEEPS]
        yield [NAMES.get(name, name), *found]


def what_stays() -> str:
    """Top-1 as they are and off centre, with what each proposal costs."""
    costs = {row["proposal"]: row for row in stored("proposal_speed-cpu")["rows"]}
    by_label = {NAMES[name]: row for name, row in costs.items()}
    head = [f"{kind} {keep}" for kind in KINDS for keep in KEEPS]
    lines = []
    for line in quality(KINDS, lambda pair: f"{pair[0]:.3f}"):
        cost = by_label.get(line[0])
        spent = f"{cost['ms_per_image']['32'][0]:.1f}" if cost else ""
        lines.append([*line, spent])
    return rows(["what the judge sees", *head, "ms an image"], *lines)


def with_errors(kind: str) -> str:
    """Top-1 of one kind of pictures with standard errors, then glance less the others."""
    figures = stored("masked_accuracy")["pictures"][kind]
    lines = list(quality((kind,), lambda pair: f"{pair[0]:.3f} ({pair[1]:.3f})"))
    for name in (LITE0, "centre", "smaller picture", "smaller picture, enlarged"):
        found = figures[f"{GLANCE} less"][name]
        cells = ["{:+.3f} ({:.3f})".format(*found[keep]) for keep in KEEPS]
        lines.append([f"glance less {NAMES[name]}", *cells])
    return rows(["what the judge sees", *KEEPS], *lines)


def proposals() -> str:
    """What each proposal costs on a CPU."""
    lines = [
        [
            NAMES[row["proposal"]],
            f"{1000 * row['gmacs']:.0f}",
            *("{:.2f} ({:.2f}-{:.2f})".format(*ms) for ms in row["ms_per_image"].values()),
            times(row["vit_b16_speedup_at_0.5"]),
        ]
        for row in stored("proposal_speed-cpu")["rows"]
    ]
    head = ["proposal", "MMACs", "ms an image, batch 8", "batch 32", "ViT-B/16 at keep 0.5"]
    return measured(rows(head, *lines), "proposal_speed-cpu")


TABLES: dict[str, Callable[[], str]] = {
    "speed on a CPU": speed_cpu,
    "speed on a GPU": speed_gpu,
    "Swin and ConvNeXt on a CPU": pyramid,
    "merging on a CPU": merging,
    "what stays": what_stays,
    "as they are": lambda: with_errors("as they are"),
    "off centre": lambda: with_errors("off centre"),
    "off centre, sharp ground": lambda: with_errors("off centre, sharp ground"),
    "proposals": proposals,
    "accuracy on photographs": lambda: measured(rows(*photographs.in_short()), photographs.RESULT),
    "photographs as they are": lambda: rows(*photographs.with_errors("as they are")),
    "photographs off centre": lambda: rows(*photographs.with_errors("off centre")),
    "differences as they are": lambda: rows(*photographs.differences("as they are")),
    "differences off centre": lambda: rows(*photographs.differences("off centre")),
    "larger pictures": lambda: rows(*photographs.larger()),
    "time on photographs": lambda: measured(rows(*photographs.times()), photographs.RESULT),
}
#: Where they stand.
PAGES = ("README.md", "docs/comparisons.md", "docs/photographs.md")


def filled(text: str) -> str:
    """A Markdown text with its tables as they are stored."""

    def table(found: re.Match[str]) -> str:
        name = found["name"]
        return f"<!-- {name} -->\n\n{TABLES[name]()}\n\n<!-- end of {name} -->"

    names = "|".join(map(re.escape, TABLES))
    pattern = rf"<!-- (?P<name>{names}) -->.*?<!-- end of (?P=name) -->"
    return re.sub(pattern, table, text, flags=re.DOTALL)


def main() -> None:
    for path in (HERE.parent / page for page in PAGES):
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
    photographs.plot()


if __name__ == "__main__":
    main()

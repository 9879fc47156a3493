"""The tables and the plot of what photographs.py stored."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common import stored
from papr.measure import pareto
from papr.plots import Line, Panel, Spot, draw_png

HERE = Path(__file__).parent
PLOT = HERE.parent / "docs" / "photographs.png"
RESULT = "photographs-vit-cpu"
WORLDS = ("as they are", "off centre")
FEW, ALL = (0.7, 0.5, 0.3), (0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
NAMES = {
    "papr": "**PaPr**, glance (default)",
    "papr, glance at twice the size": "PaPr, glance at 224 px",
    "papr, Lite0 at 160 px": "PaPr, Lite0 at 160 px",
    "papr, Lite0 at 224 px": "PaPr, Lite0 at 224 px",
    "papr, softcam of Lite0 at 224 px": "PaPr, softcam of Lite0 at 224 px",
    "papr + tome": "PaPr + ToMe",
    "papr + pooling": "PaPr + pooling",
    "papr + second cut": "PaPr + second cut",
    "random": "random",
    "centre": "centre",
    "stride": "even stride",
    "embedding norm": "embedding norm",
    "class attention": "class attention in block 3",
    "lower resolution": "smaller picture, dense",
    "tome": "ToMe",
}
#: What the plot shows, and under which name.
DRAWN = {
    "dense": "dense",
    "papr": "papr",
    "papr, 160 px pictures": "papr, of larger pictures",
    "papr + tome": "papr + ToMe",
    "lower resolution": "smaller picture",
    "tome": "ToMe",
    "class attention": "class attention",
    "random": "random",
    "centre": "centre",
    "stride": "even stride",
}


def result() -> dict[str, Any]:
    """What was measured."""
    return stored(RESULT)


def row_of(way: str, keep: float) -> dict[str, Any] | None:
    """The row of one way at one keep; None where the host cannot have it."""
    rows = result()["rows"]
    return next((r for r in rows if r["way"] == way and abs(r["keep"] - keep) < 1e-6), None)


def shown() -> list[tuple[str, str]]:
    """Way and name of all rows but dense ones."""
    larger = {
        row["way"]: f"PaPr, {row['side']} px pictures, as many patches"
        for row in result()["rows"]
        if row["way"].startswith("papr, ") and row["way"].endswith("pictures")
    }
    return list((NAMES | larger).items())


def points(pair: list[float], sign: str = "", error: bool = True) -> str:
    """A share, or a difference of shares, in points, with its standard error."""
    return f"{100 * pair[0]:{sign}.1f}" + (f" ({100 * pair[1]:.1f})" if error else "")


def rows_of(cell: Callable[[dict[str, Any]], str], keeps: Sequence[float]) -> list[list[str]]:
    """A line for each way: its name, and a cell at each keep."""
    found = [
        [name, *(cell(row) if row else "" for row in (row_of(way, keep) for keep in keeps))]
        for way, name in shown()
    ]
    return [line for line in found if any(line[1:])]


def in_short() -> list[list[str]]:
    """Top-1 in both worlds and time, without errors; dense first."""
    dense = row_of("dense", 1)
    assert dense is not None
    tables = [
        rows_of(lambda row, world=world: points(row["top1"][world], error=False), FEW)
        for world in WORLDS
    ]
    times = rows_of(lambda row: f"{row['ms_per_image'][0]:.2f} ({row['speedup'][0]:.2f}x)", (0.5,))
    blank = [""] * (len(FEW) - 1)
    whole = [
        text for world in WORLDS for text in (points(dense["top1"][world], error=False), *blank)
    ]
    head = [f"{world} {keep:g}" for world in WORLDS for keep in FEW]
    lines = [
        [first[0], *first[1:], *second[1:], *time[1:]]
        for first, second, time in zip(*tables, times, strict=True)
    ]
    return [
        ["top-1 in %", *head, "ms an image at 0.5"],
        ["dense, 112 px", *whole, f"{dense['ms_per_image'][0]:.2f}"],
        *lines,
    ]


def with_errors(world: str) -> list[list[str]]:
    """Top-1 in one world at each keep."""
    head = ["top-1 in % (standard error)", *(f"{keep:g}" for keep in ALL)]
    blank = [""] * (len(ALL) - 1)
    dense = [
        [name, points(row["top1"][world]), *blank]
        for name, row in ((row["way"], row) for row in result()["rows"])
        if name.startswith("dense")
    ]
    return [head, *dense, *rows_of(lambda row: points(row["top1"][world]), ALL)]


def differences(world: str) -> list[list[str]]:
    """PaPr less dense, and less each other way, photograph by photograph."""
    head = ["PaPr less this, in points (standard error)", *(f"{keep:g}" for keep in ALL)]
    ours = [row_of("papr", keep) for keep in ALL]
    dense = ["dense", *(points(row["less dense"][world], "+") for row in ours if row)]

    def cell(row: dict[str, Any]) -> str:
        found = row.get("papr less this")
        return points(found[world], "+") if found else ""

    return [head, dense, *rows_of(cell, ALL)]


def times() -> list[list[str]]:
    """Milliseconds and GMACs of each way."""
    head = ["ms an image (GMACs, the proposal's included)", *(f"{keep:g}" for keep in ALL)]

    def cell(row: dict[str, Any]) -> str:
        return f"{row['ms_per_image'][0]:.2f} ({row['gmacs_host'] + row['gmacs_proposal']:.2f})"

    blank = [""] * (len(ALL) - 1)
    dense = [
        [row["way"], cell(row), *blank]
        for row in result()["rows"]
        if row["way"].startswith("dense")
    ]
    return [head, *dense, *rows_of(cell, ALL)]


def larger() -> list[list[str]]:
    """Larger pictures at the dense host's number of patches."""
    lines = [["", "patches", *(f"top-1, {world}" for world in WORLDS), "ms an image"]]
    for row in result()["rows"]:
        if row["keep"] == 1:
            cells = [points(row["top1"][world]) for world in WORLDS]
            name = row["way"].replace("papr, ", "PaPr, ")
            name += f", {row['note']}" if row["note"] else ""
            lines.append([name, str(row["tokens"]), *cells, f"{row['ms_per_image'][0]:.2f}"])
    return lines


def plot(path: Path = PLOT) -> None:
    """Accuracy against time, as they are and off centre."""
    rows = result()["rows"]
    panels = []
    for world in WORLDS:
        spots: dict[str, list[Spot]] = {}
        for row in rows:
            if row["way"] in DRAWN:
                middle, low, high = row["ms_per_image"]
                label = f"{row['keep']:g}" if row["way"] == "papr" else ""
                spot = Spot(middle, 100 * row["top1"][world][0], label, between=(low, high))
                spots.setdefault(DRAWN[row["way"]], []).append(spot)
        lines = [
            Line(name, sorted(spots[name], key=lambda spot: spot.x))
            for name in DRAWN.values()
            if name in spots
        ]
        every = [spot for line in lines for spot in line.spots]
        front = [every[i] for i in pareto([(spot.x, spot.y) for spot in every])]
        panels.append(Panel("ms an image", f"top-1 in %, {world}", lines, front))
    note = "{} test photographs of Caltech-101, batch {}, {}".format(
        result()["photographs"], result()["batch"], result()["environment"]["device"]
    )
    draw_png(path, panels, note)

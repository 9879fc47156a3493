"""The tables and the plot of what photographs.py stored."""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from papr.measure import pareto
from papr.plots import Line, Panel, Spot, draw_png

HERE = Path(__file__).parent
PLOT = HERE.parent / "docs" / "photographs.png"
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


@cache
def stored(host: str = "vit") -> dict[str, Any]:
    """What was measured on a host, on a CPU."""
    path = HERE / "results" / f"photographs-{host}-cpu.json"
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def row_of(way: str, keep: float, host: str = "vit") -> dict[str, Any] | None:
    """The row of one way at one keep; None where the host cannot have it."""
    rows = stored(host)["rows"]
    return next((r for r in rows if r["way"] == way and abs(r["keep"] - keep) < 1e-6), None)


def percent(pair: list[float], sign: str = "") -> str:
    """A share and its standard error, in points."""
    return f"{100 * pair[0]:{sign}.1f} ({100 * pair[1]:.1f})"


def top1(keeps: tuple[float, ...], worlds: tuple[str, ...]) -> Iterator[list[str]]:
    """Accuracy of each way with errors, dense first."""
    dense = row_of("dense", 1)
    assert dense is not None
    blank = [""] * (len(keeps) - 1)
    yield ["dense", *(c for world in worlds for c in (percent(dense["top1"][world]), *blank))]
    for way, name in shown():
        found = [row_of(way, keep) for keep in keeps]
        cells = [percent(r["top1"][world]) if r else "" for world in worlds for r in found]
        yield [name, *cells]


def shown() -> list[tuple[str, str]]:
    """Way and name of all rows, those on larger pictures too."""
    larger = {
        row["way"]: f"PaPr, {row['side']} px pictures"
        for row in stored()["rows"]
        if row["way"].startswith("papr, ") and row["way"].endswith("pictures")
    }
    return list((NAMES | larger).items())


def plot(path: Path = PLOT) -> None:
    """Accuracy against time, as they are and off centre."""
    rows = stored()["rows"]
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
        stored()["photographs"], stored()["batch"], stored()["environment"]["device"]
    )
    draw_png(path, panels, note)

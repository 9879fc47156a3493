"""Plots of quality against cost: a PNG for documents, a page for whoever wants to hover.

Colours are those of Okabe and Ito ("Color Universal Design", 2002), which colour-blind people tell
apart; each line has a marker of its own too.
"""

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from papr.files import atomic, write_text

#: The line whose points stand as a star, and what all lines that begin so have in common.
DENSE, OURS = "dense", "papr"
_INK, _FRONT = "#222222", "#C9C9C9"
_OURS_COLOUR = "#D55E00"
_COLOURS = ("#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#777777", "#5D3A9B")
_DASHES = (("-", "solid"), ("--", "dash"), ("-.", "dashdot"), (":", "dot"))
_OUR_MARKERS = (("o", "circle"), ("s", "square"), ("D", "diamond"), ("p", "pentagon"))
_MARKERS = (
    ("^", "triangle-up"),
    ("v", "triangle-down"),
    ("X", "x"),
    ("<", "triangle-left"),
    (">", "triangle-right"),
    ("P", "cross"),
    ("h", "hexagon"),
)


@dataclass(frozen=True)
class Spot:
    """One point.

    Attributes:
        x: its cost.
        y: its quality.
        label: what stands beside it; may be empty.
        text: what a page shows when it is pointed at, HTML.
        between: lower and upper end of the cost, where it was measured.
    """

    x: float
    y: float
    label: str = ""
    text: str = ""
    between: tuple[float, float] | None = None


@dataclass(frozen=True)
class Line:
    """Points that belong together, by rising cost.

    Attributes:
        name: for the legend.
        spots: the points.
    """

    name: str
    spots: Sequence[Spot]


@dataclass(frozen=True)
class Panel:
    """Quality against one cost.

    Attributes:
        x_label: the cost and its unit.
        y_label: the quality and its unit.
        lines: what is drawn.
        front: the Pareto front, by rising cost.
    """

    x_label: str
    y_label: str
    lines: Sequence[Line]
    front: Sequence[Spot] = field(default=())


@dataclass(frozen=True)
class _Style:
    """How a line looks: in matplotlib's words and in plotly's."""

    colour: str
    dash: tuple[str, str]
    marker: tuple[str, str]
    width: float
    size: float


def _styles(panels: Sequence[Panel]) -> dict[str, _Style]:
    """One style for each name, the same in all panels."""
    found: dict[str, _Style] = {}
    ours = others = 0
    for name in dict.fromkeys(line.name for panel in panels for line in panel.lines):
        if name == DENSE:
            found[name] = _Style(_INK, _DASHES[0], ("*", "star"), 0, 15)
        elif name == OURS or name.startswith(f"{OURS},"):
            dash, marker = (table[ours % len(table)] for table in (_DASHES, _OUR_MARKERS))
            found[name] = _Style(_OURS_COLOUR, dash, marker, 2.2, 7)
            ours += 1
        else:
            colour, marker = _COLOURS[others % len(_COLOURS)], _MARKERS[others % len(_MARKERS)]
            dash = _DASHES[others // len(_COLOURS) % len(_DASHES)]
            found[name] = _Style(colour, dash, marker, 1.3, 7)
            others += 1
    return found


def _staircase(front: Sequence[Spot]) -> Iterator[tuple[float, float]]:
    """The best quality that can be had at each cost: up at each point, level between them."""
    for before, spot in zip((None, *front)[: len(front)], front, strict=True):
        if before is not None:
            yield spot.x, before.y
        yield spot.x, spot.y


def draw_png(path: Path, panels: Sequence[Panel], note: str = "") -> None:
    """Draw panels side by side, one legend below; written atomically.

    Args:
        path: the file; its suffix may be another that matplotlib writes.
        panels: from 1.
        note: a line at the bottom.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    styles = _styles(panels)
    rows = -(-(len(styles) + 1) // 4)
    below = 0.75 + 0.24 * rows + (0.25 if note else 0)  # inches
    height = 4.4 + below
    figure = Figure(figsize=(6.2 * len(panels) + 0.4, height), dpi=150)
    FigureCanvasAgg(figure)
    figure.subplots_adjust(
        left=0.75 / (6.2 * len(panels)), right=0.985, top=1 - 0.2 / height, bottom=below / height
    )
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, panel in zip(axes, panels, strict=True):
        _draw_axis(axis, panel, styles)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="lower center",
        ncols=4,
        frameon=False,
        fontsize=9,
        bbox_to_anchor=(0.5, (0.25 if note else 0) / height),
    )
    if note:
        figure.text(0.5, 0.08 / height, note, ha="center", fontsize=8, color="#555555")
    with atomic(path) as temporary:
        figure.savefig(temporary)


def _draw_axis(axis: Any, panel: Panel, styles: dict[str, _Style]) -> None:
    stairs = list(_staircase(panel.front))
    if stairs:
        axis.plot(*zip(*stairs, strict=True), color=_FRONT, lw=6, zorder=1, label="Pareto front")
    for line in panel.lines:
        style = styles[line.name]
        x, y = [s.x for s in line.spots], [s.y for s in line.spots]
        ours = line.name == OURS
        axis.plot(
            x,
            y,
            color=style.colour,
            ls=style.dash[0] if style.width else "none",
            lw=style.width,
            marker=style.marker[0],
            ms=style.size,
            mec="white",
            mew=0.8,
            label=line.name,
            zorder=5 if ours else 3 if style.width else 6,
        )
        for spot in line.spots:
            if spot.between is not None:
                axis.plot(spot.between, (spot.y, spot.y), color=style.colour, lw=1, alpha=0.6)
            if ours and spot.label:
                _label(axis, spot)
    axis.set_xlabel(panel.x_label)
    axis.set_ylabel(panel.y_label)
    axis.set_xlim(left=0)
    axis.grid(color="#EEEEEE", zorder=0)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _label(axis: Any, spot: Spot) -> None:
    from matplotlib.patheffects import withStroke

    axis.annotate(
        spot.label,
        (spot.x, spot.y),
        xytext=(0, 8),
        textcoords="offset points",
        ha="center",
        fontsize=8,
        color=_OURS_COLOUR,
        path_effects=[withStroke(linewidth=2.5, foreground="white")],
        zorder=8,
    )


def draw_html(path: Path, panels: Sequence[Panel], note: str = "") -> None:
    """Draw panels as a page to hover over, zoom and switch lines off in; written atomically.

    The page holds plotly.js, which makes it 4 to 5 MB, and loads nothing.

    Args:
        path: the file.
        panels: from 1.
        note: a line at the top.
    """
    from plotly.graph_objects import Figure, Scatter
    from plotly.subplots import make_subplots

    styles = _styles(panels)
    figure: Figure = make_subplots(rows=1, cols=len(panels), horizontal_spacing=0.09)
    for column, panel in enumerate(panels, 1):
        shared = {"showlegend": column == 1}
        stairs = list(_staircase(panel.front))
        if stairs:
            xs, ys = zip(*stairs, strict=True)
            look = {"color": _FRONT, "width": 8}
            front = Scatter(x=xs, y=ys, mode="lines", line=look, name="Pareto front", **shared)
            front.update(legendgroup="front", hoverinfo="skip")
            figure.add_trace(front, row=1, col=column)
        for line in panel.lines:
            trace = _trace(Scatter, line, styles[line.name])
            figure.add_trace(trace.update(**shared), row=1, col=column)
        figure.update_xaxes(title=panel.x_label, rangemode="tozero", row=1, col=column)
        figure.update_yaxes(title=panel.y_label, row=1, col=column)
    figure.update_layout(template="plotly_white", title={"text": note, "font": {"size": 14}})
    page = figure.to_html(include_plotlyjs=True, div_id="papr", full_html=True)
    head = f'<html lang="en">\n<head><title>{html.escape(f"papr sweep: {note}")}</title>'
    write_text(path, page.replace("<html>\n<head>", head, 1))


def _trace(scatter: Any, line: Line, style: _Style) -> Any:
    trace = scatter(
        x=[spot.x for spot in line.spots],
        y=[spot.y for spot in line.spots],
        text=[spot.text or line.name for spot in line.spots],
        hovertemplate="%{text}<br>%{y:.3f} at %{x:.3f}<extra></extra>",
        name=line.name,
        legendgroup=line.name,
        mode="lines+markers" if style.width else "markers",
        line={"color": style.colour, "width": style.width, "dash": style.dash[1]},
        marker={"color": style.colour, "size": style.size + 2, "symbol": style.marker[1]},
    )
    if all(spot.between is not None for spot in line.spots):
        ends = [(s.x, *s.between) for s in line.spots if s.between is not None]
        trace.error_x = {
            "type": "data",
            "array": [upper - x for x, _, upper in ends],
            "arrayminus": [x - lower for x, lower, _ in ends],
            "thickness": 1,
            "width": 0,
        }
    return trace

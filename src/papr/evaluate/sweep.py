"""Grids of configurations beside the baselines, on one data set, in one run."""

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from papr.baselines.resolution import LowerResolution
from papr.compare.field import SHARED, Makers
from papr.config import DEFAULT_PROPOSAL, ProposalSize, PruneConfig
from papr.errors import ConfigError, PaprError
from papr.evaluate.contenders import DENSE, Contender, names
from papr.evaluate.evaluation import evaluate, statistics_of
from papr.evaluate.loading import Prepare
from papr.evaluate.preparing import prepare_for
from papr.evaluate.runs import Watch
from papr.evaluate.sources import Source
from papr.evaluate.summary import Report, Result
from papr.files import write_json, write_text
from papr.hosts.inputs import pixel_shape
from papr.later import Merge
from papr.measure import pareto
from papr.plots import Line, Panel, Spot, draw_html, draw_png
from papr.proposals import as_proposal
from papr.provenance import GIVEN, KEY, Weights
from papr.pruning import prune, unprune
from papr.twins import twin
from papr.walking import PLOT, TABLE
from papr.wrappers import unwrap

PAPR = "papr"
#: What a front is drawn over, and the headings of the axes.
COSTS = {
    "gmacs": "{macs} per {view}, host and proposal",
    "ms_per_image": "ms per {unit}, measured (median, quartiles)",
}
QUALITIES = {
    "top1": "top-1 accuracy, %",
    "agreement": "agreement with the dense host, %",
    "cosine": "cosine of embeddings with the dense host's",
}
_SPEED = "times as fast as dense, measured"
#: What is swept unless told otherwise: 28 ways to run a plain ViT, which cost about 17 dense passes
#: over the data.
KEEPS, RS, TOME_RS = (0.7, 0.5, 0.3), (0, 8), (4, 8, 16)


class _Way(NamedTuple):
    """What a contender is to a plot."""

    family: str
    keep: float
    r: int


@dataclass(frozen=True)
class Point:
    """One way to run the host, as a point of the plots.

    Attributes:
        family: the line it belongs to: "dense", "papr", "papr, r 8", "random" ...
        keep: fraction of patches that stay before the first block.
        r: tokens merged away in each block that merges.
        result: what was measured.
        fronts: on which fronts it is, among `COSTS`.
    """

    family: str
    keep: float
    r: int
    result: Result
    fronts: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data, derived figures included."""
        own = {"family": self.family, "keep": self.keep, "r": self.r, "fronts": list(self.fronts)}
        return own | asdict(self.result) | {"gmacs": self.result.gmacs}


@dataclass(frozen=True)
class Sweep:
    """What a sweep found.

    Attributes:
        points: the dense host first, then family by family.
        quality: what the plots show upwards: "top1" of labelled images, otherwise "agreement", or
            "cosine" where the host does not classify; None where weights are random, and the
            speed-up is plotted.
        missing: name -> why this host cannot have that baseline.
        report: of `evaluate`.
    """

    points: list[Point]
    quality: str | None
    missing: dict[str, str]
    report: Report

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "quality": self.quality,
            "points": [point.to_dict() for point in self.points],
            "missing": self.missing,
            "environment": self.report.environment,
            "configuration": self.report.configuration,
            KEY: self.report.provenance.to_dict(),
        }

    def write(self, folder: str | Path, note: str = "", html: bool = True) -> list[Path]:
        """Write the points as sweep.json and sweep.csv, the plots as sweep.png and sweep.html.

        The page holds all it needs (plotly.js, 4 to 5 MB), and so opens without a network.

        Args:
            folder: where to; made if needed.
            note: a line below the plots; what the weights are where it is empty.
            html: whether to write the page.

        Returns:
            What was written.
        """
        folder, note = Path(folder), note or str(self.report.provenance)
        written, panels = [folder / TABLE, folder / "sweep.csv"], self.panels()
        write_json(written[0], self.to_dict())
        write_text(written[1], self._csv())
        for name, draw in {PLOT: draw_png, "sweep.html": draw_html}.items():
            if panels and (html or name == PLOT):
                written.append(folder / name)
                draw(written[-1], panels, note)
        return written

    def panels(self) -> list[Panel]:
        """The plots: quality against arithmetic, and against time where it was measured.

        With random weights the measured speed-up against arithmetic; none where it was not.
        """
        timed = all(point.result.ms_per_image is not None for point in self.points)
        if self.quality is None:
            return [self._panel("gmacs")] if timed else []
        costs = ["gmacs", "ms_per_image"] if timed else ["gmacs"]
        return [self._panel(cost) for cost in costs]

    def _panel(self, cost: str) -> Panel:
        small = cost == "gmacs" and max(point.result.gmacs for point in self.points) < 1
        lines: dict[str, list[Spot]] = {}
        for point in self.points:
            lines.setdefault(point.family, []).append(self._spot(point, cost, small))
        front = [self._spot(point, cost, small) for point in self.points if cost in point.fronts]
        front.sort(key=lambda spot: (spot.x, spot.y))
        macs, about = "MMACs" if small else "GMACs", self.report
        return Panel(
            COSTS[cost].format(macs=macs, view=about.gmacs_of, unit=about.unit),
            _SPEED if self.quality is None else QUALITIES[self.quality],
            [Line(family, sorted(spots, key=lambda s: s.x)) for family, spots in lines.items()],
            front,
        )

    def _spot(self, point: Point, cost: str, small: bool) -> Spot:
        result = point.result
        between = result.ms_per_image if cost == "ms_per_image" else None
        label = f"{point.keep:g}" if point.keep < 1 else ""
        speed = f"<br>{result.speedup[0]:.2f} times as fast" if result.speedup else ""
        return Spot(
            cost_of(result, cost) * (1000 if small else 1),
            self._height(result),
            label,
            f"{result.name}<br>{result.gmacs:.2f} GMACs{speed}",
            None if between is None else between[1:],
        )

    def _height(self, result: Result) -> float:
        """What is drawn upwards."""
        if self.quality is None:
            assert result.speedup is not None
            return result.speedup[0]
        return (1 if self.quality == "cosine" else 100) * quality_of(result, self.quality)

    def _csv(self) -> str:
        text = io.StringIO()
        about = str(self.report.provenance)
        rows = [_flat(point) | {KEY: about} for point in self.points]
        table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        return text.getvalue()


def _flat(point: Point) -> dict[str, Any]:
    """A point as a row: medians and quartiles in columns of their own."""
    row = point.to_dict() | {"fronts": " ".join(point.fronts)}
    for name in ("ms_per_image", "speedup"):
        values = row.pop(name) or (None, None, None)
        row |= dict(zip((name, f"{name}_lower", f"{name}_upper"), values, strict=True))
    return row


def cost_of(result: Result, cost: str) -> float:
    """A result's GMACs, or its median milliseconds per image."""
    if cost == "gmacs":
        return result.gmacs
    assert result.ms_per_image is not None
    return result.ms_per_image[0]


def quality_of(result: Result, quality: str) -> float:
    """A result's top-1, agreement or cosine, which it has."""
    found: float = getattr(result, quality)
    return found


def grid(
    keeps: Iterable[float] = KEEPS,
    rs: Iterable[int] = (0,),
    proposals: Iterable[Any] = (DEFAULT_PROPOSAL,),
    proposal_sizes: Iterable[ProposalSize] = (None,),
    **options: Any,
) -> list[PruneConfig]:
    """Every combination, keep the fastest to change.

    Args:
        keeps: fractions of patches to keep, 0 < keep < 1.
        rs: tokens to merge away in each block of the second half; 0 for no merging.
        proposals: names, networks or `papr.Proposal`s.
        proposal_sizes: resolutions; see `PruneConfig`.
        **options: further options of `PruneConfig`, the same for all.

    Raises:
        ConfigError: a value is out of range, or there is no combination.
    """
    keeps, rs, proposal_sizes = list(keeps), list(rs), list(proposal_sizes)
    found = [
        PruneConfig(keep, who, size, merge=Merge(r) if r else None, **options)
        for who in proposals
        for size in proposal_sizes
        for r in rs
        for keep in keeps
    ]
    if not found:
        raise ConfigError("expected a configuration at least, got an empty grid")
    return found


def sweep(
    host: nn.Module,
    data: Source | str | Path,
    configs: Sequence[PruneConfig] | None = None,
    out: str | Path | None = None,
    *,
    baselines: bool = True,
    tome_rs: Sequence[int] = TOME_RS,
    quality: str | None = None,
    name: str = "",
    weights: Weights = GIVEN,
    prepare: Prepare | None = None,
    batch: int | None = None,
    part: int | None = None,
    workers: int | None = None,
    watch: Watch | None = None,
) -> Sweep:
    """Evaluate a grid of configurations and the baselines on a data set, and find the front.

    One run of `evaluate`: each sample is decoded once, the dense host answers it once, the others
    after it in turns; killed, it is taken up by the same call. The baselines at each keep of the
    grid are a random, a central and an even selection, the one by the norm of the host's embeddings
    and by its class attention in block 3, and the dense host on a smaller picture; beside them ToMe
    alone. See `papr.compare.rivals.rivals` for their sources.

    Args:
        host: as in `evaluate`.
        data: as in `evaluate`.
        configs: of `grid`, keep below 1; None for keeps 0.7, 0.5 and 0.3 without merging and, where
            the host can merge, with r = 8.
        out: folder of the run; None for one below papr-sweep, as of `evaluate`. `Sweep.write`
            puts the plots anywhere.
        baselines: whether to run them.
        tome_rs: tokens that ToMe alone merges in every block, with the baselines.
        quality: "top1", "agreement" or "cosine"; None for the first of them that there is, which is
            none with random weights.
        name: as in `evaluate`, and so the rest.
        weights: see there.
        prepare: see there.
        batch: see there.
        part: see there.
        workers: see there.
        watch: see there.

    Raises:
        ConfigError: an option is out of range, or `out` has rows of another configuration.
        DataError: nothing that can be read is in `data`.
        UnsupportedModelError: the host cannot be pruned.
    """
    if quality is not None and quality not in QUALITIES:
        raise ConfigError(f"expected quality among {', '.join(QUALITIES)}, got {quality!r}")
    if configs is None:
        configs = grid(rs=RS if can_merge(host) else (0,))
    looked = [as_proposal(config.proposal).weights for config in configs]
    if quality is not None and any(one.random for one in (weights, *looked)):
        raise ConfigError(f"expected no quality with random weights, got {quality!r}")
    if not configs or any(config.keep == 1 for config in configs):
        raise ConfigError("expected configurations with keep below 1, ToMe alone is a baseline")
    prepare = prepare or prepare_for(host, name)
    statistics = statistics_of(prepare)
    ways = _ways(configs, statistics)
    rivals, missing = _baselines(host, configs, tome_rs, statistics) if baselines else ([], {})
    ways |= {rival.name: _Way(*rival.facts["way"]) for rival in rivals}
    report = evaluate(
        host,
        data,
        configs,
        out,
        name=name,
        weights=weights,
        rivals=rivals,
        prepare=prepare,
        batch=batch,
        part=part,
        workers=workers,
        watch=watch,
        below="papr-sweep",
    )
    return _with_fronts(report, ways, quality, missing)


def can_merge(host: nn.Module) -> bool:
    """Whether the host can merge tokens."""
    try:
        prune(unprune(twin(unwrap(host))).eval(), 1.0, merge=Merge(1))
    except PaprError:
        return False
    return True


def _ways(configs: Sequence[PruneConfig], statistics: tuple[Any, Any]) -> dict[str, _Way]:
    """What each configuration's contender is to a plot, by its name."""
    named = zip(names(configs, *statistics), configs, strict=True)
    return {name: _way(config, configs) for name, config in named}


def _way(config: PruneConfig, configs: Sequence[PruneConfig]) -> _Way:
    """Its line is named by what tells it from the others, and by what it merges."""
    own: dict[str, Any] = {"keep": config.keep, "merge": config.merge}
    for option in fields(PruneConfig):
        values = [getattr(other, option.name) for other in configs]
        if any(value != values[0] for value in values):
            own[option.name] = getattr(config, option.name)
    if "mean" in own or "std" in own:  # neither goes alone
        own |= {"mean": config.mean, "std": config.std}
    label = names([PruneConfig(**own)])[0].removeprefix(f"keep {config.keep:g}")
    r = 0 if config.merge is None or not isinstance(config.merge.r, int) else config.merge.r
    return _Way(PAPR + label, config.keep, r)


def _with_fronts(
    report: Report, ways: dict[str, _Way], quality: str | None, missing: dict[str, str]
) -> Sweep:
    results = report.results
    if quality is None and not report.blank:
        quality = next((q for q in QUALITIES if getattr(results[0], q) is not None), "cosine")
    if quality is not None and getattr(results[0], quality) is None:
        raise ConfigError(f"expected a quality that the samples and the host have, got {quality!r}")
    fronts = {}
    for cost in COSTS if quality is not None else ():
        if cost == "gmacs" or all(result.ms_per_image for result in results):
            assert quality is not None
            spots = [(cost_of(r, cost), quality_of(r, quality)) for r in results]
            fronts[cost] = set(pareto(spots))
    points = []
    for i, result in enumerate(results):
        on = tuple(cost for cost, front in fronts.items() if i in front)
        way = ways.get(result.name, _Way(DENSE, 1.0, 0))
        points.append(Point(*way, result, on))
    families = list(dict.fromkeys(point.family for point in points))
    points.sort(key=lambda point: families.index(point.family))
    return Sweep(points, quality, missing, report)


def _baselines(
    host: nn.Module,
    configs: Sequence[PruneConfig],
    tome_rs: Sequence[int],
    statistics: tuple[Any, Any],
) -> tuple[list[Contender], dict[str, str]]:
    """The baselines as contenders, family by family; and why the host cannot have the others."""
    weight = next(host.parameters())
    example = torch.zeros(1, *pixel_shape(host), device=weight.device, dtype=weight.dtype)
    options = {key: getattr(configs[0], key) for key in SHARED}
    if options["mean"] is None:
        options |= dict(zip(("mean", "std"), statistics, strict=True))
    found: dict[str, list[Contender]] = {}
    missing: dict[str, str] = {}
    for keep in dict.fromkeys(config.keep for config in configs):
        makers = Makers(host, example, keep, options, seed=None)
        for family, make in makers.selections().items():
            _try(family, _Way(family, keep, 0), make, makers, (found, missing))
    dense = makers.dense
    for r in tome_rs:

        def merging(r: int = r) -> nn.Module:
            return prune(twin(dense), 1.0, merge=Merge(r), **makers.shared)

        _try("tome", _Way("tome", 1.0, r), merging, makers, (found, missing))
    return [contender for family in found.values() for contender in family], missing


def _try(
    family: str,
    way: _Way,
    make: Callable[[], nn.Module],
    makers: Makers,
    into: tuple[dict[str, list[Contender]], dict[str, str]],
) -> None:
    found, missing = into
    try:
        model = make()
    except PaprError as error:
        missing[family] = str(error)
        return
    label = f"{family}, r {way.r}" if way.r else f"{family}, keep {way.keep:g}"
    facts = {"name": label, "way": list(way), "options": makers.shared}
    if isinstance(model, LowerResolution):
        facts["size"] = list(model.size)
    found.setdefault(family, []).append(Contender(label, model, facts))

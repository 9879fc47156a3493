"""Maps against maps, on one small classifier: what `papr compare-cam` prints.

Two questions to each method: what does a map cost, alone and in a batch, and does it rank the
patches as another network needs them? The judge is not the network that the maps are made of, which
would flatter maps made of its own classes.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn

from papr.baselines import centre_scores, random_scores, stride_scores
from papr.baselines.cams import Cam
from papr.images import keep_visible
from papr.measure import Timing, curves, interleave
from papr.measure.curves import STEPS
from papr.selecting import kept_count, select
from papr.significance import to_grid

#: Below this probability of its own top-1, the network that the maps are made of counts as unsure.
UNSURE = 0.3
#: Turns in which Score-CAM is timed, at most.
SLOW_ROUNDS = 2
#: Forward passes of Score-CAM for a map, one a channel.
SLOW_PASSES = 1280
#: Selections without a map, printed beside those with one.
PLACES = ("random", "centre", "stride")


@dataclass(frozen=True)
class CamTime:
    """What one method costs.

    Attributes:
        ms_per_image: batch size -> milliseconds per image (median, lower, upper quartile).
        slower: batch size -> its time over that of the first fast method, turn by turn, likewise.
        gain: time per image alone over that in the largest batch, turn by turn, likewise; above 1,
            batches save time.
        batch_gap: how far the maps of a batch are from those of its images one by one, the largest
            difference relative to the largest value; None for a method whose calls loop anyway.
    """

    ms_per_image: dict[int, tuple[float, float, float]]
    slower: dict[int, tuple[float, float, float]]
    gain: tuple[float, float, float]
    batch_gap: float | None


def time_cams(
    cams: Mapping[str, Cam],
    pixels: Tensor,
    rounds: int = 5,
    warmup: int = 1,
    each_turn: Callable[[int], object] | None = None,
) -> dict[str, CamTime]:
    """Time methods alone and in a batch, all taking turns in one run.

    A call of Score-CAM goes image by image and runs the network a thousand times for each: it is
    timed on one image, and that time counts for either batch size. It takes turns with the
    method that all are compared with, at most `SLOW_ROUNDS` of them, after the others are done.

    Args:
        cams: name -> method; the first is what the others are compared with, unless that is
            Score-CAM and there is another.
        pixels: (B, 3, H, W), a batch normalised for the classifier.
        rounds: turns that count.
        warmup: turns before them, of all but Score-CAM.
        each_turn: told after every turn how many passes over an image it took, about; see `work`
            for how many there are.
    """
    sizes = sorted({1, len(pixels)})
    base, slow = compared_with(cams), [name for name in cams if name == "scorecam"]
    fast = [name for name in cams if name not in slow]
    rivals = {(n, size): partial(cams[n], pixels[:size]) for size in sizes for n in fast}
    found = _interleave(rivals, rounds, warmup, pixels, each_turn)
    times = {name: _cost(found, name, base, sizes) for name in fast}
    for name in slow:
        some = {key: call for key, call in rivals.items() if key[0] == base}
        some[name, 1] = partial(cams[name], pixels[:1])
        beside = _interleave(some, min(rounds, SLOW_ROUNDS), 0, pixels, each_turn)
        beside |= {(name, size): beside[name, 1] for size in sizes}
        times[name] = _cost(beside, name, base, sizes)
    gaps = {name: batch_gap(cams[name], pixels[:4]) for name in fast}
    return {name: replace(times[name], batch_gap=gaps.get(name)) for name in cams}


def compared_with(cams: Iterable[str]) -> str:
    """The method whose time is 1: the first that is not Score-CAM, where there is one."""
    return next((name for name in cams if name != "scorecam"), "scorecam")


def work(cams: Iterable[str], batch: int, rounds: int, warmup: int = 1) -> int:
    """How many passes over an image `time_cams` takes, about."""
    names, images = set(cams), sum({1, batch})
    fast = len(names - {"scorecam"})
    passes = (rounds + warmup) * images * fast
    if "scorecam" in names:
        passes += min(rounds, SLOW_ROUNDS) * (SLOW_PASSES + (images if fast else 0))
    return passes


def _interleave(
    rivals: Mapping[tuple[str, int], Callable[[], object]],
    rounds: int,
    warmup: int,
    pixels: Tensor,
    each_turn: Callable[[int], object] | None,
) -> dict[tuple[str, int], Timing]:
    """Seconds per image of each call."""
    named = {f"{name} {size}": call for (name, size), call in rivals.items()}
    passes = cycle([SLOW_PASSES if name == "scorecam" else size for name, size in rivals])
    told = None if each_turn is None else lambda: each_turn(next(passes))
    found = interleave(named, rounds, warmup, pixels.device, told)
    return {
        (name, size): Timing(tuple(s / size for s in found[f"{name} {size}"].seconds))
        for name, size in rivals
    }


def _cost(
    found: Mapping[tuple[str, int], Timing], name: str, base: str, sizes: list[int]
) -> CamTime:
    return CamTime(
        {size: found[name, size].ms_per_image(1) for size in sizes},
        {size: found[base, size].speedup_over(found[name, size]) for size in sizes},
        found[name, sizes[-1]].speedup_over(found[name, 1]),
        None,
    )


@torch.inference_mode()
def batch_gap(method: Callable[[Tensor], Tensor], pixels: Tensor) -> float:
    """How far a batch's maps are from one-by-one ones, relative to their largest value."""
    together = method(pixels)
    alone = torch.cat([method(image) for image in pixels.split(1)])
    return float((together - alone).abs().max() / alone.abs().max().clamp(min=1e-12))


@dataclass
class CamQuality:
    """Collects, batch by batch, how well the kept patches of each map serve the judge.

    Attributes:
        cams: name -> method, on `net`.
        net: the classifier that the maps are made of, pixels (x - 0.5) / 0.5 to logits.
        judge: another one, for the same pixels.
        keep: fraction of patches shown to the judge.
        patch: side of a patch, in pixels.
        steps: of the deletion and insertion curves.
        seed: of the random selection.
        records: one for each image so far: the class judged, the confidence of `net`, and for each
            method the figures (None where it or its curves were left out).
    """

    cams: Mapping[str, Callable[[Tensor], Tensor]]
    net: nn.Module
    judge: nn.Module
    keep: float = 0.5
    patch: int = 16
    steps: int = STEPS
    seed: int = 0
    records: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        draws = [random_scores(self.seed, self.patch)]
        draws += [centre_scores(self.patch), stride_scores(self.patch)]
        self._all = {**self.cams, **dict(zip(PLACES, draws, strict=True))}

    @torch.inference_mode()
    def add(
        self,
        pixels: Tensor,
        skip: Sequence[str] = (),
        with_curves: bool = True,
        watch: Callable[[int], object] | None = None,
    ) -> dict[str, Tensor]:
        """Measure a batch.

        Args:
            pixels: (B, 3, H, W) in [0, 1], sides multiples of the patch.
            skip: methods to leave out.
            with_curves: draw deletion and insertion curves too, which take 2 * (steps + 1)
                forwards of the judge for each image and method.
            watch: told after every method how many passes over an image it took; see `passes`.

        Returns:
            Name -> significance map (B, H, W) on the patch grid.
        """
        x = (pixels - 0.5) / 0.5
        classes = self.judge(x).argmax(1)
        sure = self.net(x).float().softmax(1).amax(1)
        grid = (pixels.shape[-2] // self.patch, pixels.shape[-1] // self.patch)
        fresh: list[dict[str, Any]] = [
            {"class": int(c), "confidence": float(p), "methods": {}}
            for c, p in zip(classes, sure, strict=True)
        ]
        maps: dict[str, Tensor] = {}
        for name, method in self._all.items():
            if name in skip:
                continue
            scores = maps[name] = to_grid(method(x), grid)
            agrees = self._top1(pixels, scores) == classes
            drawn = curves(self.judge, x, scores, classes, self.steps) if with_curves else None
            for i, record in enumerate(fresh):
                record["methods"][name] = {
                    "agrees": bool(agrees[i]),
                    "deletion": None if drawn is None else float(drawn.deletion_area[i]),
                    "insertion": None if drawn is None else float(drawn.insertion_area[i]),
                }
            if watch is not None:
                watch(len(pixels) * self._passes(name, with_curves))
        self.records += fresh
        return maps

    def passes(self, skip: Sequence[str] = (), with_curves: bool = True) -> int:
        """How many passes `add` takes over an image, about."""
        return sum(self._passes(name, with_curves) for name in self._all if name not in skip)

    def _passes(self, name: str, with_curves: bool) -> int:
        map_and_mask = 1 + (SLOW_PASSES if name == "scorecam" else 1)
        return map_and_mask + (2 * (self.steps + 1) if with_curves else 0)

    def _top1(self, pixels: Tensor, scores: Tensor) -> Tensor:
        """What the judge sees in the kept patches alone, (B,)."""
        mask = select(scores, kept_count(self.keep, scores[0].numel())).mask()
        found: Tensor = self.judge((keep_visible(pixels, mask) - 0.5) / 0.5).argmax(1)
        return found

    def groups(self) -> dict[str, list[dict[str, Any]]]:
        """The sets of images that figures are given for; empty ones are left out."""
        found = {
            "all images": self.records,
            f"confidence below {UNSURE}": [r for r in self.records if r["confidence"] < UNSURE],
        }
        if "scorecam" in self.cams:
            found["with scorecam"] = [r for r in self.records if "scorecam" in r["methods"]]
        return {name: records for name, records in found.items() if records}

    def summary(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Group -> method -> how many images, and the means over them."""
        return {
            group: {
                name: row
                for name in self._all
                if (row := _means([r["methods"].get(name) for r in records]))["images"]
            }
            for group, records in self.groups().items()
        }


def _means(found: Iterable[dict[str, Any] | None]) -> dict[str, Any]:
    rows = [row for row in found if row is not None]
    drawn = [row for row in rows if row["deletion"] is not None]
    figures: dict[str, Any] = {"images": len(rows), "curve_images": len(drawn)}
    for name, some in (("agrees", rows), ("deletion", drawn), ("insertion", drawn)):
        values = [float(row[name]) for row in some]
        figures[name] = sum(values) / len(values) if values else None
    return figures

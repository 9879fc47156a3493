"""A budget for each image, or the same for all? Real weights, real photographs, equal mean tokens.

Each image keeps as many patches as carry a given share of its significance, rounded to one of a
few buckets so that batches stay dense; the share is what makes the mean number of kept patches
that of a fixed keep on one half of the photographs, and the comparison is made on the other half.
Halves are drawn several times and each serves both ways; a photograph's figure is the mean over
the draws, and the intervals are bootstrapped over photographs.

The judge is EfficientNet-Lite2, which sees only the kept 16-px patches of a 14 x 14 grid, the rest
filled with the image's mean colour; the maps are those of EfficientNet-Lite0. Beside the ways to
allot stand their own budgets dealt to other images at random: where these do as well, the allotment
knows nothing, and its spread alone costs.

Then the time: a ViT-B/16 pruned with the fixed keep and with a budget for each image, on batches
of photographs whose budgets are spread as all are; both in turns, the proposal's time included. The
shares used for that are stored too: those of every second photograph, `papr.budgets.SHARES`.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

import timm
import torch
from torch import Tensor

from common import SHARED, parser, photographs, save
from papr import prune, selection
from papr.baselines.cams import folded
from papr.budgets import budgets, fit
from papr.environment import pick_device
from papr.files import atomic
from papr.images import keep_visible
from papr.measure import interleave
from papr.proposals import Proposal, wheels
from papr.selecting import kept_count, select
from papr.significance import to_grid
from papr.twins import twin

HOST = "vit_base_patch16_224"
GRID, PATCHES = (14, 14), 196
KEEPS = (0.7, 0.6, 0.5, 0.4, 0.3)
TIMED = (0.7, 0.5, 0.3)
MEAN = STD = (0.5, 0.5, 0.5)
#: Where budgets may lie: at so many steps, of the patches or of the fixed keep's.
LADDERS: dict[str, Callable[[float], list[float]]] = {
    "eighths of the patches": lambda keep: [n / 8 for n in range(1, 9)],
    "0.75 to 1.25 of the target": lambda keep: [keep * n / 8 for n in range(6, 11)],
    "0.75, 1, 1.25 of the target": lambda keep: [keep * n / 8 for n in (6, 8, 10)],
}
Budget = Callable[[float], Tensor]  # growing parameter -> patches of each image (N,), unrounded
Judged = dict[int, tuple[Tensor, Tensor]]  # K -> class answered, probability of the true one


def by_share(weights: Tensor) -> tuple[Budget, float, float]:
    """As many patches as carry a share of the weights (N, patches)."""
    ranked = weights.double().sort(1, descending=True).values
    carried = ranked.cumsum(1) / ranked.sum(1, keepdim=True)
    return lambda share: (carried < share).sum(1) + 1, 0.0, 1.0


def by_signal(signal: Tensor, slope: float) -> tuple[Budget, float, float]:
    """`slope` patches more for each standard deviation of something known of the whole image."""
    extra = slope * (signal - signal.mean()) / signal.std()
    return lambda base: base + extra, -2.0 * PATCHES, 3.0 * PATCHES


def ways(maps: Tensor, confidence: Tensor) -> dict[str, list[tuple[Budget, float, float]]]:
    """How budgets are allotted; of several variants the calibration half chooses one."""
    flat = maps.flatten(1)
    above = flat - flat.amin(1, keepdim=True)
    spread = flat.std(1).mean()
    slopes = (-37.0, -25.0, -12.0, 12.0, 25.0, 37.0)
    variation = flat.std(1) / flat.mean(1)
    return {
        "share of the map clamped at 0": [by_share(flat.clamp_min(0))],
        "share of the map less its minimum": [by_share(above)],
        "share of a power of that": [by_share(above**power) for power in (0.5, 1, 2, 3)],
        "share of a softmax": [by_share((flat / (t * spread)).softmax(1)) for t in (0.5, 1, 2, 4)],
        "the map's coefficient of variation": [by_signal(variation, s) for s in slopes],
        "the proposal's log-confidence": [by_signal(confidence.log(), s) for s in slopes],
    }


def rounded(budget: Tensor, ladder: Tensor) -> Tensor:
    """To the nearest bucket, (N,) int64."""
    nearest = (budget.unsqueeze(1) - ladder).abs().argmin(1)
    return ladder[nearest]


def calibrated(
    way: tuple[Budget, float, float], ladder: Tensor, images: Tensor, target: int
) -> Tensor:
    """Budgets of all images whose mean over `images` is as near to the target as can be."""
    budget, low, high = way

    def miss(parameter: float) -> float:
        return float(rounded(budget(parameter), ladder)[images].double().mean()) - target

    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if miss(middle) < 0 else (low, middle)
    best = min((low, high), key=lambda parameter: abs(miss(parameter)))
    return rounded(budget(best), ladder)


def buckets(name: str, keep: float) -> Tensor:
    """The numbers of patches that a ladder allows."""
    fractions = LADDERS[name](keep)
    return torch.tensor(sorted({kept_count(min(1.0, f + 1e-9), PATCHES) for f in fractions}))


def halves(count: int, draws: int) -> Iterable[tuple[Tensor, Tensor]]:
    """Pairs (calibration, held out), both ways round for each draw."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(draws):
        one, other = torch.randperm(count, generator=generator).chunk(2)
        yield one, other
        yield other, one


class Judgement:
    """What the judge said of each image at each number of patches."""

    def __init__(self, judged: Judged, labels: Tensor) -> None:
        self.row = {count: row for row, count in enumerate(sorted(judged))}
        answers = torch.stack([judged[count][0] for count in self.row])
        self.figures = {
            "top1": (answers == labels).double(),
            "probability_of_truth": torch.stack([judged[k][1] for k in self.row]).double(),
            "agreement_with_whole": (answers == answers[-1]).double(),
        }

    def of(self, figure: str, budget: Tensor) -> Tensor:
        """A figure (N,) when each image keeps so many patches."""
        rows = torch.tensor([self.row[count] for count in budget.tolist()])
        return self.figures[figure][rows, torch.arange(len(rows))]


def held_out(
    variants: list[tuple[Budget, float, float]],
    ladder_name: str,
    keep: float,
    said: Judgement,
    draws: int,
    deal: bool = False,
) -> dict:
    """Adaptive less fixed on photographs that no parameter was chosen on; see the file's head."""
    ladder, target = buckets(ladder_name, keep), kept_count(keep, PATCHES)
    count = said.figures["top1"].shape[1]
    fixed = {name: said.of(name, torch.full((count,), target)) for name in said.figures}
    gain = {name: torch.zeros(count, dtype=torch.float64) for name in fixed}
    kept, spread = torch.zeros(count, dtype=torch.float64), 0.0
    generator = torch.Generator().manual_seed(1)
    for chosen_on, reported_on in halves(count, draws):
        tried = [calibrated(way, ladder, chosen_on, target) for way in variants]
        best = max(tried, key=lambda budget: float(said.of("top1", budget)[chosen_on].sum()))
        if deal:
            order = torch.randperm(len(reported_on), generator=generator)
            best = best.index_copy(0, reported_on, best[reported_on[order]])
        for name in gain:
            gain[name][reported_on] += (said.of(name, best) - fixed[name])[reported_on] / draws
        kept[reported_on] += best[reported_on] / draws
        spread += float(best[reported_on].double().std()) / (2 * draws)
    return {name: interval(values) for name, values in gain.items()} | {
        "mean_patches": float(kept.mean()),
        "deviation_of_patches": spread,
    }


def interval(values: Tensor) -> tuple[float, float, float]:
    """Mean over photographs, and its 95 % bootstrap interval."""
    generator = torch.Generator().manual_seed(2)
    means = torch.stack(
        [values[torch.randint(len(values), (len(values),), generator=generator)].mean()
         for _ in range(4000)]
    )  # fmt: skip
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return float(values.mean()), low, high


@torch.inference_mode()
def look(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Significance maps (N, 14, 14) and the proposal's own confidence (N,)."""
    net = folded(wheels.classifier(wheels.LITE0).to(pixels.device))
    scorer = Proposal(wheels.LITE0).scorer(pixels.device, torch.float32, None, MEAN, STD)
    maps, confidence = [], []
    for images in pixels.split(32):
        maps.append(to_grid(scorer((images - 0.5) / 0.5), GRID))
        small = torch.nn.functional.interpolate(images, 160, mode="bilinear", antialias=True)
        confidence.append(net((small - 0.5) / 0.5).softmax(1).amax(1))
    return torch.cat(maps), torch.cat(confidence)


@torch.inference_mode()
def judge(pixels: Tensor, labels: Tensor, maps: Tensor, counts: set[int], known: Judged) -> Judged:
    """Show the judge every image at every number of patches that is not known yet."""
    net = folded(wheels.classifier(wheels.LITE2).to(pixels.device))
    for count in sorted(counts - set(known)):
        logits = [
            net((keep_visible(images, select(scores, count).mask()) - 0.5) / 0.5)
            for images, scores in zip(pixels.split(16), maps.split(16), strict=True)
        ]
        answers = torch.cat(logits).cpu()
        truth = answers.softmax(1).gather(1, labels.cpu()[:, None])[:, 0]
        known[count] = (answers.argmax(1), truth)
        right = float((known[count][0] == labels.cpu()).double().mean())
        print(f"{count:4} patches: top-1 {right:.3f}", flush=True)
    return {count: known[count] for count in counts}


def typical(budget: Tensor, size: int) -> Tensor:
    """A batch whose budgets are spread as those of all photographs: every so-manieth of them."""
    places = (torch.arange(size) + 0.5) * len(budget) / size
    return budget.argsort(stable=True)[places.long()]


def times(
    host: torch.nn.Module,
    pixels: Tensor,
    maps: Tensor,
    keep: float,
    share: float,
    batch: int,
    rounds: int,
) -> dict:
    """Papr itself with a budget for each image, over papr with the same keep for all."""
    statistics = {"mean": MEAN, "std": STD}
    fixed = prune(twin(host), keep, wheels.LITE0, **statistics)
    adaptive = prune(twin(host), "auto", wheels.LITE0, target=keep, share=share, **statistics)
    counts = budgets(maps, share, keep)
    images = (pixels[typical(counts, batch).to(pixels.device)] - 0.5) / 0.5
    rivals = {"fixed": lambda: fixed(images), "adaptive": lambda: adaptive(images)}
    timing = interleave(rivals, rounds, warmup=1, device=pixels.device)
    kept = selection(adaptive).counts
    return {
        "mean_patches": [kept_count(keep, PATCHES), float(kept.double().mean())],
        "group_sizes": {int(k): int((kept == k).sum()) for k in kept.unique()},
        "ms_per_image": {name: t.ms_per_image(batch) for name, t in timing.items()},
        "speed_of_adaptive_over_fixed": timing["adaptive"].speedup_over(timing["fixed"]),
    }


def recall(path: Path | None) -> Judged:
    return {} if path is None or not path.exists() else torch.load(path)


def compare_all(maps: Tensor, confidence: Tensor, said: Judgement, draws: int) -> dict:
    """Every ladder, way and keep."""
    result: dict = {}
    for ladder in LADDERS:
        rows: dict = result.setdefault(ladder, {})
        for name, variants in ways(maps, confidence).items():
            for deal in [False, True] if len(variants) == 1 else [False]:
                title = name + (", budgets dealt at random" if deal else "")
                rows[title] = {
                    str(keep): held_out(variants, ladder, keep, said, draws, deal) for keep in KEEPS
                }
                gains = ["{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * x for x in row["top1"]))
                         for row in rows[title].values()]  # fmt: skip
                print(f"{ladder}; {title}: " + "  ".join(gains), flush=True)
    return result


def main() -> None:
    options = parser(__doc__ or "", "adaptive.json")
    options.add_argument("--data", default=SHARED / "imagenet-sample", type=Path)
    options.add_argument("--draws", type=int, default=10, help="of the two halves")
    options.add_argument("--batches", type=int, nargs="+", default=[8, 32])
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--judged", type=Path, help="keep what the judge said in this file")
    args = options.parse_args()
    device = pick_device(args.device)
    pixels, labels = photographs(args.data)
    maps, confidence = look(pixels.to(device))
    counts = {kept_count(keep, PATCHES) for keep in KEEPS} | {PATCHES}
    counts |= {int(k) for name in LADDERS for keep in KEEPS for k in buckets(name, keep)}
    judged = judge(pixels.to(device), labels.to(device), maps, counts, recall(args.judged))
    if args.judged is not None:
        with atomic(args.judged) as path:
            torch.save(judged, path)
    said = Judgement(judged, labels)
    quality = compare_all(maps.cpu(), confidence.cpu(), said, args.draws)

    shares = {keep: fit(maps[::2].cpu(), keep) for keep in KEEPS}
    print("shares: " + ", ".join(f"{share:.4f} at {keep}" for keep, share in shares.items()))
    host = timm.create_model(HOST).to(device).eval()
    speed: dict = {str(batch): {} for batch in args.batches}
    with torch.inference_mode():
        for batch in args.batches:
            for keep in TIMED:
                some = maps.cpu(), keep, shares[keep], batch, args.rounds
                row = times(host, pixels.to(device), *some)
                speed[str(batch)][str(keep)] = row
                ratio = row["speed_of_adaptive_over_fixed"]
                print(f"batch {batch}, keep {keep}: "
                      "{:.3f}x ({:.3f}-{:.3f})".format(*ratio), flush=True)  # fmt: skip
    save(
        args.json,
        args.device,
        photographs=len(labels),
        judge="EfficientNet-Lite2",
        draws=args.draws,
        fixed_top1={str(k): float(said.figures["top1"][r].mean()) for k, r in said.row.items()},
        adaptive_less_fixed=quality,
        shares={str(keep): share for keep, share in shares.items()},
        host_timed=HOST,
        time=speed,
    )


if __name__ == "__main__":
    main()

"""Do the kept patches lie where people move? On real clips, beside random and centre selection.

The measure is automatic and asks no network: under a fairly steady camera, what changes from one
tubelet to the next is people and what they hold. Of each clip's pixel change (mean absolute
difference to the last tubelet, on the patch grid) two figures say how much was kept: the share of
its whole mass that lies on kept patches, and the share of the fifth of patches that change most.
Random selection keeps as much as its `keep` says. The measure knows nothing of people who hold
still, and it is what score="motion" ranks by, so of that row it tells that the mixing works, not
that it is good. Significance alone never sees it.

Writes overlays (kept bright, the rest dimmed, the map beside it) to look at.
"""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

import papr
from common import SHARED, parser, save
from papr.baselines import centre_scores, random_scores
from papr.config import IMAGENET_MEAN, IMAGENET_STD
from papr.motion import mix, motion_map
from papr.proposals import wheels
from papr.proposals.reuse import picture_change, thumbnail
from papr.selecting import kept_count
from papr.significance import to_grid
from papr.video import POLICIES, open_video
from papr.video.overlay import overlay, write_gif, write_mp4
from papr.video.sampling import normalise, read_crops, views

GRID, TUBELET, MOST = (8, 14, 14), 2, 0.2
WHO = papr.Proposal(wheels.LITE0)
KEEPS = [0.45, 0.35, 0.2]
WEIGHT = papr.PruneConfig.motion_weight


def windows(path: Path, stride: int) -> tuple[Tensor, float]:
    """A whole video as clips (V, 16, 3, 224, 224) uint8, and their frames per second."""
    policy = replace(POLICIES["consecutive"], stride=stride)
    with open_video(path) as video:
        chosen = views(policy, video.frames, video.height, video.width)
        return read_crops(video, chosen), video.fps / policy.stride


def maps_of(pixels: Tensor) -> Tensor:
    """Significance maps (V, 8, 14, 14) of clips (V, 3, 16, 224, 224)."""
    cpu = torch.device("cpu")
    scorer = WHO.scorer(cpu, torch.float32, None, IMAGENET_MEAN, IMAGENET_STD, tubelet=TUBELET)
    return to_grid(scorer(pixels), GRID)


@torch.inference_mode()
def maps(clips: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Scores of each way of selecting, (V, 8, 14, 14), and how much each patch changed."""
    pixels = normalise(clips).transpose(1, 2)
    found = maps_of(pixels)
    change = motion_map(pixels, GRID)
    return {
        "papr": found,
        f'papr, score="motion" (weight {WEIGHT:g})': mix(found, change, WEIGHT),
        "centre": to_grid(centre_scores(16)(pixels), GRID),
        "random": to_grid(random_scores(cell=16)(pixels[:, :, ::TUBELET]), GRID),
    }, change


def selected(scores: Tensor, keep: float) -> papr.Selection:
    """What stays of each clip, as a host pruned to `keep` would have it."""
    return papr.select(scores, kept_count(keep, scores[0].numel()))


def kept_change(kept: Tensor, change: Tensor) -> dict[str, float]:
    """The two figures, means over the clips."""
    flat, chosen = change.flatten(1), kept.flatten(1)
    mass = (flat * chosen).sum(1) / flat.sum(1)
    count = int(MOST * flat.shape[1])
    most = papr.select(change, count).indices
    return {
        "change_on_kept": float(mass.mean()),
        "most_changing_kept": float(chosen.gather(1, most).float().mean()),
    }


@torch.inference_mode()
def staleness(path: Path, stride: int) -> list[dict[str, float]]:
    """What reuse= would do: neighbouring clips, by how much the picture changed between them.

    `shared` says what part of the later clip's own selection at keep 0.35 the earlier clip's holds.
    """
    pixels = normalise(windows(path, stride)[0]).transpose(1, 2)
    small = thumbnail(pixels)
    scores = maps_of(pixels)
    kept = selected(scores, 0.35).mask().flatten(1)
    change = picture_change(small[1:], small[:-1])
    largest = (small[1:] - small[:-1]).abs().mean(1).flatten(1).amax(1)
    shared = (kept[1:] & kept[:-1]).sum(1) / kept[1:].sum(1)
    return [
        {"picture_change": float(c), "largest_cell": float(m), "shared": float(s)}
        for c, m, s in zip(change, largest, shared, strict=True)
    ]


def summary(pairs: list[dict[str, float]]) -> dict[str, float]:
    """Pairs whose map would be reused by default, and how well either measure tells."""
    threshold = papr.PruneConfig.reuse_threshold
    reused = [p["shared"] for p in pairs if p["picture_change"] <= threshold]
    others = [p["shared"] for p in pairs if p["picture_change"] > threshold]
    table = torch.tensor([list(p.values()) for p in pairs])
    correlation = torch.corrcoef(table.T)[2]
    return {
        "threshold": threshold,
        "pairs": len(pairs),
        "pairs_below": len(reused),
        "shared_below": sum(reused) / len(reused),
        "shared_above": sum(others) / len(others),
        "correlation_picture_change": float(correlation[0]),
        "correlation_largest_cell": float(correlation[1]),
    }


def pictures(clips: Tensor, scores: Tensor, keep: float, fps: float, out: Path) -> None:
    """An MP4 and a GIF of the whole video."""
    kept = selected(scores, keep)
    frames = clips.flatten(0, 1).permute(0, 2, 3, 1)
    drawn = overlay(frames, kept.mask().flatten(0, 1), scores.flatten(0, 1))
    write_mp4(out.with_suffix(".mp4"), drawn, fps)
    write_gif(out.with_suffix(".gif"), drawn, fps)


def main() -> None:
    options = parser(__doc__ or "", "video_people.json")
    options.add_argument("--data", type=Path, default=SHARED / "kinetics-sample")
    options.add_argument("--out", type=Path, default=Path("video-people"), help="for the overlays")
    args = options.parse_args()
    paths = sorted(args.data.glob("*.mp4"))
    if not paths:
        raise SystemExit(f"expected clips in {args.data}/*.mp4, found none; pass --data")
    rows, pairs = [], []
    for path in paths:
        clips, fps = windows(path, stride=4)
        scores, change = maps(clips)
        pairs += staleness(path, 1) + staleness(path, 2)
        for name, found in scores.items():
            for keep in KEEPS:
                kept = selected(found, keep).mask()
                row = {"video": path.stem, "clips": len(clips), "selection": name, "keep": keep}
                rows.append(row | kept_change(kept, change))
                print(
                    f"{path.stem} ({len(clips)} clips) {name}, keep {keep}: "
                    f"{rows[-1]['change_on_kept']:.3f} of all change, "
                    f"{rows[-1]['most_changing_kept']:.3f} of the most changing fifth",
                    flush=True,
                )
            if name.startswith("papr"):
                label = "motion" if "motion" in name else "significance"
                pictures(clips, found, 0.35, fps, args.out / f"{path.stem}-{label}")
    reuse = summary(pairs)
    print(reuse)
    save(args.json, "cpu", weights="EfficientNet-Lite0, real", rows=rows, reuse=reuse)


if __name__ == "__main__":
    main()

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

from pathlib import Path

import torch
from torch import Tensor

import papr
from common import SHARED, parser, save
from papr.baselines import centre_scores, random_scores
from papr.motion import mix, motion_map
from papr.selecting import kept_count
from papr.significance import to_grid
from papr.video import POLICIES, open_video
from papr.video.overlay import overlay, write_gif, write_mp4
from papr.video.sampling import normalise, read_crops, views

GRID, TUBELET, MOST = (8, 14, 14), 2, 0.2
KEEPS = [0.45, 0.35, 0.2]
WEIGHT = papr.PruneConfig().motion_weight


def windows(path: Path) -> tuple[Tensor, float]:
    """A whole video as clips (V, 16, 3, 224, 224) uint8, and their frames per second."""
    policy = POLICIES["consecutive"]
    with open_video(path) as video:
        chosen = views(policy, video.frames, video.height, video.width)
        return read_crops(video, chosen), video.fps / policy.stride


@torch.inference_mode()
def maps(clips: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Scores of each way of selecting, (V, 8, 14, 14), and how much each patch changed."""
    pixels = normalise(clips).transpose(1, 2)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    scorer = papr.Proposal().scorer(
        torch.device("cpu"), torch.float32, None, mean, std, tubelet=TUBELET
    )
    found = to_grid(scorer(pixels), GRID)
    change = motion_map(pixels, GRID)
    return {
        "papr": found,
        f'papr, score="motion" (weight {WEIGHT:g})': mix(found, change, WEIGHT),
        "centre": to_grid(centre_scores(16)(pixels), GRID),
        "random": to_grid(random_scores(cell=16)(pixels[:, :, ::TUBELET]), GRID),
    }, change


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


def pictures(clips: Tensor, scores: Tensor, keep: float, fps: float, out: Path) -> None:
    """An MP4 and a GIF of the whole video."""
    kept = papr.select(scores, kept_count(keep, scores[0].numel()))
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
    rows = []
    for path in paths:
        clips, fps = windows(path)
        scores, change = maps(clips)
        for name, found in scores.items():
            for keep in KEEPS:
                kept = papr.select(found, kept_count(keep, found[0].numel())).mask()
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
    save(args.json, "cpu", weights="EfficientNet-Lite0, real", rows=rows)


if __name__ == "__main__":
    main()

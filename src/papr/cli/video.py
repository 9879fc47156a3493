"""`papr video`: see what is kept of a clip over time, and what that saves."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from itertools import pairwise
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.table import Table

from papr.cli.common import (
    Keep,
    ProposalName,
    ProposalSize,
    Score,
    advise,
    out,
    parse_proposal_size,
    print_line,
    progress,
    results_first,
    speed_table,
)
from papr.cli.hosting import (
    Device,
    Model,
    OutFolder,
    RandomWeights,
    RoundsOrNone,
    make_proposal,
    say_blank,
)
from papr.cli.tables import Sheet
from papr.config import DEFAULT_PROPOSAL, PruneConfig
from papr.environment import describe_device, environment, pick_device
from papr.errors import ConfigError
from papr.files import check_folder, make_output, write_json
from papr.provenance import KEY, Provenance
from papr.words import counted

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor, nn

    from papr.compare import Row
    from papr.video import Video, View

_SIDE = 336  # pixels of a shown frame, about; whole pixels for each patch
_BLOCKS = "▁▂▃▄▅▆▇█"
_WINDOWS = 8
_TOP = 5


class _Seen(NamedTuple):
    """What the pruned host made of one window."""

    mask: Tensor  # (t, h, w) bool
    scores: Tensor  # (t, h, w)
    indices: Tensor  # (K,)
    logits: Tensor  # (classes,)


def video(
    clip: Annotated[Path, typer.Argument(help="A video, in any container FFmpeg reads.")],
    keep: Keep = 0.35,
    out_dir: OutFolder = Path("papr-video"),
    model: Model = "videomae_base",
    proposal: ProposalName = DEFAULT_PROPOSAL,
    proposal_size: ProposalSize = None,
    random_weights: RandomWeights = False,
    score: Score = "significance",
    windows: Annotated[
        int | None,
        typer.Option(min=1, help=f"How many, one behind the other; by default up to {_WINDOWS}."),
    ] = None,
    start: Annotated[
        list[float] | None,
        typer.Option(help="A window that starts at this second; may be given several times."),
    ] = None,
    stride: Annotated[int, typer.Option(min=1, help="Video frames per frame of a window.")] = 4,
    rounds: RoundsOrNone = 3,
    device: Device = "auto",
    decoder: Annotated[str, typer.Option(help="auto, torchcodec or pyav.")] = "auto",
) -> None:
    """Prune a video model on a clip and write an overlay of what it kept.

    A video host looks at windows: 16 frames or so, every fourth of the video. A small ConvNet
    scores their patches in space and time, and only the best enter the host. Written to the folder:

    CLIP-papr.mp4 and .gif, the kept patches bright and the rest dimmed, beside them the
    significance map, below them the fraction kept at each moment; and CLIP-papr.json with the kept
    patches and all that is printed: that fraction, GMACs and time dense against pruned and, where
    the model is trained, the five likeliest classes of both.

    For instance: papr video clip.mp4 --keep 0.35 --start 2 --start 5.5 --random-weights
    """
    if not 0 < keep < 1:
        raise ConfigError(f"expected 0 < --keep < 1, got {keep:g}")
    config = PruneConfig(keep, proposal_size=parse_proposal_size(proposal_size), score=score)
    if windows is not None and start:
        raise ConfigError("expected --windows or --start, got both")
    check_folder(out_dir, "--out")
    from papr.cli.reading import distinct_names
    from papr.hub import video_statistics
    from papr.named import create_video
    from papr.video import open_video

    target = pick_device(device)
    with open_video(clip, decoder) as source:
        print_line(
            f"{clip.name}: {counted(source.frames, 'frame')} of {source.width} x {source.height} "
            f"in {source.duration:.1f} s, {source.fps:g} per second, read by {source.backend}"
        )
        _check_times(source, stride, start or [])
        who = make_proposal(proposal, random_weights)
        host, weights = create_video(model, random_weights)
        weighed = Provenance(weights, {who.name: who.weights})
        host, judged = host.to(target), not weighed.random
        shape = _clip_shape(host, model)
        chosen = _windows(source, shape, stride, windows, start)
        mean, std = video_statistics(host, model)
        config = replace(config, proposal=who, mean=mean, std=std)
        print_line(f"{model} ({weighed}), keep {keep:g}, {describe_device(target)}")
        seen, dense = _look(source, chosen, host, config, target, compared=judged)
        pictures = _draw(source, chosen, seen, weighed.note)
        first = _pixels(source, chosen[0], config, target)
    fps = _rate(source, chosen, stride)
    (name,) = distinct_names([clip])
    files = {kind: out_dir / f"{name}-papr.{kind}" for kind in ("mp4", "gif", "json")}
    make_output(out_dir)
    said = json.dumps({KEY: weighed.to_dict()})
    top = _top(host, seen, dense) if judged else None
    report = {
        "command": " ".join(["papr", *sys.argv[1:]]),
        "clip": _clip_facts(source),
        "model": model,
        KEY: weighed.to_dict(),
        "proposal": who.name,
        "keep": keep,
        "proposal_size": proposal_size,
        "score": score,
        "mean": list(mean),
        "std": list(std),
        "stride": stride,
        "codec": None,
        "windows": _window_facts(source, chosen, seen),
        "top5": top,
        "speed": [],
        "environment": environment(target),
    }
    with results_first(lambda: _write(files, report, pictures, fps, said)):
        rows = _time(first, host, config, rounds) if rounds else []
        report["speed"] = [row.to_dict() for row in rows]
        with results_first(lambda: write_json(files["json"], report)):
            out.print(_kept_table(source, chosen, seen))
            if top is None:
                say_blank(f"{weighed.blank('answers')} So there is no top-5.")
            else:
                out.print(_top_table(top, len(chosen)))
            if rows:
                out.print(speed_table(rows, "clip"))
                advise(rows)
    there = ", ".join(str(file) for file in files.values())
    print_line(f"written: {there}")


def _write(
    files: dict[str, Path],
    report: dict[str, Any],
    pictures: list[Image.Image],
    fps: float,
    said: str,
) -> None:
    """The figures, which a film that cannot be written does not lose; then the films."""
    from papr.video.overlay import write_gif, write_mp4

    write_json(files["json"], report)
    report["codec"] = write_mp4(files["mp4"], pictures, fps, said)
    write_gif(files["gif"], pictures, fps, said)


def _check_times(source: Video, stride: int, starts: list[float]) -> None:
    """Refuse what the video is too short for, before a model is built."""
    if source.frames < 2:
        raise ConfigError(f"expected a video of 2 frames or more, {source.path} has 1")
    if stride >= source.frames:
        raise ConfigError(
            f"expected --stride below the video's {counted(source.frames, 'frame')}, got {stride}"
        )
    for seconds in starts:
        if not isfinite(seconds) or not 0 <= seconds < source.duration:
            raise ConfigError(
                f"expected --start within the video's {source.duration:.2f} s, got {seconds:g}"
            )


def _clip_shape(host: nn.Module, name: str) -> tuple[int, int]:
    """(frames, side) of the clips that the host takes."""
    from papr.hosts.inputs import pixel_shape

    shape = pixel_shape(host)
    if len(shape) != 4 or shape[2] != shape[3]:
        raise ConfigError(
            f"expected a --model of square clips (T, C, S, S), got {name!r} of {shape}"
        )
    return shape[0], shape[2]


def _windows(
    source: Video,
    shape: tuple[int, int],
    stride: int,
    windows: int | None,
    starts: list[float] | None,
) -> list[View]:
    """One view for each window: the centre crop."""
    from papr.video import POLICIES, views
    from papr.video.sampling import window

    length, side = shape
    policy = replace(
        POLICIES["consecutive"],
        clip=length,
        size=side,
        stride=stride,
        windows=_WINDOWS if windows is None else windows,
    )
    found = views(policy, source.frames, source.height, source.width)
    if not starts:
        return found
    chosen = []
    for seconds in starts:
        frames = window(source.frames, source.frame_at(seconds), length, stride)
        chosen.append(replace(found[0], frames=frames))
    return chosen


def _pixels(source: Video, view: View, config: PruneConfig, device: torch.device) -> Tensor:
    """(1, T, 3, S, S), normalised for the host."""
    from papr.video.sampling import normalise, read_crops

    assert config.mean is not None
    assert config.std is not None
    return normalise(read_crops(source, [view]), config.mean, config.std).to(device)


def _look(
    source: Video,
    chosen: list[View],
    host: nn.Module,
    config: PruneConfig,
    device: torch.device,
    compared: bool,
) -> tuple[list[_Seen], list[Tensor]]:
    """Each window through the pruned host, and through the dense one where answers count."""
    import torch

    from papr.pruning import prune, selection
    from papr.selecting import Selection
    from papr.twins import twin

    pruned = prune(twin(host), config)
    seen, dense = [], []
    with torch.inference_mode(), progress("looking") as bar:
        for view in bar.track(chosen):
            pixels = _pixels(source, view, config, device)
            logits = pruned(pixels).logits[0].float().cpu()
            kept = selection(pruned)
            assert isinstance(kept, Selection)
            assert kept.scores is not None
            mask, scores, indices = kept.mask()[0], kept.scores[0], kept.indices[0]
            seen.append(_Seen(mask.cpu(), scores.cpu(), indices.cpu(), logits))
            if compared:
                dense.append(host(pixels).logits[0].float().cpu())
    return seen, dense


def _draw(source: Video, chosen: list[View], seen: list[_Seen], note: str) -> list[Any]:
    """The overlay of all windows, one after the other."""
    import torch

    from papr.video import POLICIES, views
    from papr.video.overlay import overlay
    from papr.video.sampling import read_crops

    grid = seen[0].mask.shape
    side = round(_SIDE / grid[2]) * grid[2] if grid[2] <= _SIDE else grid[2]
    crop = replace(POLICIES["uniform"], size=side)
    (whole,) = views(crop, source.frames, source.height, source.width)
    shown = [replace(whole, frames=view.frames) for view in chosen]
    frames = read_crops(source, shown).flatten(0, 1).permute(0, 2, 3, 1)
    mask, scores = (torch.cat([getattr(one, name) for one in seen]) for name in ("mask", "scores"))
    fractions = mask.float().mean((1, 2)).repeat_interleave(len(frames) // len(mask))
    numbers = [number for view in chosen for number in view.frames]
    captions = [
        f"{source.seconds[number]:.1f} s   kept {fraction:.0%}"
        for number, fraction in zip(numbers, fractions.tolist(), strict=True)
    ]
    return overlay(frames, mask, scores, captions, note)


def _rate(source: Video, chosen: list[View], stride: int) -> float:
    """Pictures a second that play the windows as fast as the video, on average."""
    pairs = [pair for view in chosen for pair in pairwise(view.frames)]
    steps = [source.seconds[b] - source.seconds[a] for a, b in pairs if b - a == stride]
    if sum(steps):
        return len(steps) / sum(steps)
    return source.fps / stride if source.fps else 7.0


def _fractions(one: _Seen) -> list[float]:
    """The kept fraction of each tubelet."""
    return [round(fraction, 4) for fraction in one.mask.float().mean((1, 2)).tolist()]


def _kept_table(source: Video, chosen: list[View], seen: list[_Seen]) -> Table:
    frames = counted(len(chosen[0].frames) // len(seen[0].mask), "frame")
    title = f"kept of each tubelet, {frames} each"
    table = Sheet("seconds", "kept", "least", "most", title=title, justify="left")
    highest = max(max(_fractions(one)) for one in seen)
    blocks = _BLOCKS if out.encoding.startswith("utf") else "12345678"
    for view, one in zip(chosen, seen, strict=True):
        fractions = _fractions(one)
        bars = "".join(blocks[min(7, int(8 * f / highest))] if f else " " for f in fractions)
        first, last = source.seconds[view.frames[0]], source.seconds[view.frames[-1]]
        span = f"{first:.1f} - {last:.1f}"
        table.add_row(span, bars, f"{min(fractions):.0%}", f"{max(fractions):.0%}")
    return table


def _top(host: nn.Module, seen: list[_Seen], dense: list[Tensor]) -> dict[str, list[Any]]:
    """The likeliest classes (name, probability), means over the windows."""
    import torch

    from papr.video import average_views

    names = getattr(getattr(host, "config", None), "id2label", {})
    answers = {"pruned": [one.logits for one in seen], "dense": dense}
    top = {}
    for who, logits in answers.items():
        mean = average_views(torch.stack(logits))
        best = mean.topk(min(_TOP, len(mean)))
        top[who] = [
            [str(names.get(int(i), int(i))), round(float(p), 4)]
            for p, i in zip(best.values, best.indices, strict=True)
        ]
    return top


def _top_table(top: dict[str, list[Any]], windows: int) -> Table:
    title = f"likeliest classes, mean of {counted(windows, 'window')}"
    table = Sheet("dense", "pruned", title=title, justify="left")
    for pair in zip(top["dense"], top["pruned"], strict=True):
        table.add_row(*(f"{name} {probability:.1%}" for name, probability in pair))
    return table


def _time(pixels: Tensor, host: nn.Module, config: PruneConfig, rounds: int) -> list[Row]:
    from papr.compare import compare

    with progress("timing") as bar:
        task = bar.add_task("timing", total=2 * (rounds + 1))
        return compare(
            host,
            pixels,
            [config.keep],
            rounds=rounds,
            warmup=1,
            each_turn=lambda: bar.advance(task),
            proposal=config.proposal,
            proposal_size=config.proposal_size,
            score=config.score,
            mean=config.mean,
            std=config.std,
        )


def _clip_facts(source: Video) -> dict[str, Any]:
    return {
        "path": str(source.path),
        "frames": source.frames,
        "fps": source.fps,
        "seconds": source.duration,
        "size": [source.height, source.width],
        "decoder": source.backend,
    }


def _window_facts(source: Video, chosen: list[View], seen: list[_Seen]) -> list[dict[str, Any]]:
    return [
        {
            "frames": list(view.frames),
            "seconds": [round(source.seconds[view.frames[i]], 3) for i in (0, -1)],
            "resized": list(view.resized),
            "crop": [view.top, view.left, view.size, view.size],
            "grid": list(one.mask.shape),
            "kept_per_tubelet": _fractions(one),
            "kept": one.indices.tolist(),
        }
        for view, one in zip(chosen, seen, strict=True)
    ]

"""When each frame of a video is shown: from its time stamps, however they jump.

Joined files (two MPEG-TS appended, say) start counting again in the middle: their stamps run
backwards, number no frames, and say only how long each frame lasts.
"""

import bisect
from collections.abc import Sequence
from itertools import pairwise

#: Seconds; a stream without an index that steps further was joined or broken off, as FFmpeg holds.
_GAP = 10.0


def timeline(stamps: Sequence[float | None], rate: float, gaps: bool = True) -> tuple[float, ...]:
    """Seconds from the first frame to each, ascending.

    Where stamps run backwards or stand still, or are missing, the frame before lasts as long as
    the one before that.

    Args:
        stamps: of the frames in the order they are shown in, in seconds.
        rate: frames per second that the header names, 0 where it does not.
        gaps: whether steps of more than ten seconds are real, as in a file with an index.
    """
    steps = [None if a is None or b is None else b - a for a, b in pairwise(stamps)]
    real = [step is not None and step > 0 and (gaps or step <= _GAP) for step in steps]
    first = next((step for step, good in zip(steps, real, strict=True) if good), None)
    usual = first or (1 / rate if rate else 0.0)
    now, found = 0.0, [0.0][: len(stamps)]
    for step, good in zip(steps, real, strict=True):
        usual = step if good and step is not None else usual
        now += usual
        found.append(round(now, 9))  # of sums of floats
    return tuple(found)


def joined(stamps: Sequence[float | None], gaps: bool) -> bool:
    """Whether stamps that ascend in one file step back, or too far: then they number no frames.

    Args:
        stamps: in seconds, in the order in which packets are decoded or frames are shown.
        gaps: as of `timeline`.
    """
    known = [stamp for stamp in stamps if stamp is not None]
    return any(b < a or (not gaps and b > a + _GAP) for a, b in pairwise(known))


def in_order(stamps: Sequence[float | None]) -> list[float | None]:
    """Stamps that were given to frames in another order (AVI), given out anew as they ascend."""
    if None in stamps:
        return [None] * len(stamps)
    return sorted(stamps)  # type: ignore[type-var]


def frame_at(seconds: Sequence[float], moment: float, fps: float) -> int:
    """The number of the frame on view at a moment, or of the next where that is nearer and near.

    Args:
        seconds: of each frame, ascending.
        moment: in seconds from the first frame, 0 or more.
        fps: frames per second, on average; near is half a frame of these.
    """
    found = max(0, bisect.bisect_right(seconds, moment) - 1)
    if found + 1 == len(seconds):
        return found
    gap = seconds[found + 1] - moment
    near = gap < moment - seconds[found] and gap < 0.5 / fps
    return found + 1 if near else found

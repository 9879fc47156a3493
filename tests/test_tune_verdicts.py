"""What tuning says of a target, from the figures of images that chose nothing."""

import re

import pytest

pytest.importorskip("pyarrow")

from papr.evaluate.judging import Quality
from papr.evaluate.searching import Goal
from papr.evaluate.tuning import _verdict
from papr.measure import wilson


def test_a_target_is_reached_or_refuted_or_neither() -> None:
    """69 of 71 is below 0.99, but so few cannot refute it; nor do they reach it."""

    def said(agree: int, images: int, target: float = 0.99) -> tuple[str, str]:
        goal = Goal("agreement", target, 0.8)
        return _verdict(goal, True, Quality(images, agree, (1.0,) * images), (2.0, 1.9, 2.1))

    state, words = said(69, 71)
    assert state == "not refuted"
    assert "agreement 0.972 (0.903-0.992) is below the target 0.99" in words
    # as many images with the same share, half of them held out, would have refuted it
    wanted = int(re.search(r"about (\d+) images", words)[1]) // 2  # type: ignore[index]
    assert (
        wilson(wanted * 69 / 71, wanted)[1] < 0.99 <= wilson((wanted - 2) * 69 / 71, wanted - 2)[1]
    )
    assert said(71, 71)[0] == "reached"  # within the interval, and met
    assert said(4000, 4000)[0] == "reached"
    assert said(60, 71)[0] == "not reached"

    cosines = (0.7, 1.0, 1.0, 1.0, 0.8, 1.0)  # 0.917 +- 0.106
    goal, near = Goal("cosine", 0.95, 0.8), Quality(6, None, cosines)
    state, words = _verdict(goal, True, near, (2.0, 1.9, 2.1))
    assert state == "not refuted"
    # z sqrt(variance / n) = 0.95 - 0.9167 at n = 50.9
    assert int(re.search(r"about (\d+) images", words)[1]) == 2 * 51  # type: ignore[index]

    faster = Goal("speedup", 2.0, 0.8)
    assert _verdict(faster, True, near, (1.9, 1.8, 2.1))[0] == "not refuted"
    assert "more rounds" in _verdict(faster, True, near, (1.9, 1.8, 2.1))[1]
    assert _verdict(faster, True, near, (2.0, 1.8, 2.1))[0] == "reached"
    assert _verdict(faster, False, near, (2.0, 1.8, 2.1))[0] == "not reached"

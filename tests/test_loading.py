"""Loading processes with too little shared memory, stuck, or killed: a run ends all the same."""

import gc
import os
import time
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

from papr.errors import PaprWarning
from papr.evaluate.finding import open_source
from papr.evaluate.judging import Held
from papr.evaluate.loading import Batch, loader, make_plan
from papr.evaluate.sharing import from_bytes, room, share, to_bytes
from papr.evaluate.sources import DataError, Item, Source
from tiny_data import host, pictures
from tiny_sources import level, touch

resource = pytest.importorskip("resource", reason="needs a system with limits")
BIG = (1, 3, 500, 500)  # 3 MB


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return open_source(touch(tmp_path, *(f"{'n' * n}.png" for n in range(1, 7))))


def big(item: Item) -> Tensor:
    return torch.full(BIG, float(level(item)))


def read(source: Source, prepare=big, workers=2, **options) -> list[Batch]:
    plan = make_plan(source, 2)
    return list(loader(source, plan, plan.parts(source), prepare, workers=workers, **options))


def check(batches: list[Batch]) -> None:
    found = [float(one[0, 0, 0]) for batch in batches for one in batch.pixels]
    assert found == [float(len(f"{'n' * n}.png")) for n in range(1, 7)]


@pytest.fixture
def no_room():
    """The system then refuses shared memory of more than a megabyte, as a full one does."""
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, usual[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, usual)


def test_batches_for_which_there_is_no_shared_memory_come_all_the_same(source, no_room):
    with pytest.warns(
        PaprWarning, match="too little shared memory for 2 loading processes"
    ) as said:
        found = read(source, patience=60)
    check(found)
    assert all(batch.copied for batch in found)
    assert len([one for one in said if issubclass(one.category, PaprWarning)]) == 1


def test_where_there_is_room_nothing_is_copied_or_said(source):
    with warnings.catch_warnings():
        warnings.simplefilter("error", PaprWarning)
        found = read(source)
    check(found)
    assert not any(batch.copied for batch in found)


def test_shared_memory_is_left_for_others():
    pixels = torch.zeros(1000)
    assert room() > 0
    assert not share(pixels, free=7999)
    assert not pixels.is_shared()
    assert share(pixels, free=8000)
    assert pixels.is_shared()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_bytes_are_of_the_view_alone_and_give_it_back(dtype):
    whole = torch.arange(4000).to(dtype)
    content = to_bytes(whole[10:20])
    assert len(content) < 3000
    assert torch.equal(from_bytes(content), whole[10:20])


def test_what_is_held_does_not_stay_in_shared_memory(tmp_path):
    """Tuning holds half of the images: in shared memory, or as open files, they would fill it."""
    source = open_source(pictures(tmp_path, 6))
    held = Held(host(), source, lambda item: torch.zeros(1, 3, 32, 32), 2, 1)
    assert held.images == 6
    assert not any(pixels.is_shared() for pixels, _ in held._batches)


def stuck(item: Item) -> Tensor:
    time.sleep(1000)
    raise AssertionError


def test_loading_processes_that_are_stuck_end_in_one_line(source):
    with pytest.raises(DataError, match=r"within 1 seconds, got none from 1 .*--workers 0"):
        read(source, stuck, workers=1, patience=1)


def ends(item: Item) -> Tensor:
    os._exit(9)


def test_a_loading_process_that_ends_is_told_in_one_line(source):
    with pytest.raises(DataError, match=r"a loading process ended: .* fewer --workers") as told:
        read(source, ends)
    assert "\n" not in str(told.value)


def test_what_nobody_holds_any_more_is_gone_before_loading_processes_start(source):
    """A decoder of videos that a forked process collects waits for ever for its threads."""

    class Decoder:
        def __init__(self) -> None:
            self.itself = self  # only the collector finds it

        def __del__(self) -> None:
            ended.append(os.getpid())

    ended: list[int] = []
    gc.disable()
    try:
        Decoder()
        read(source)
    finally:
        gc.enable()
    assert ended == [os.getpid()]

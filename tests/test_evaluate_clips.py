"""Videos as a data set: their views as the protocol cuts them, one row each, broken ones named."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

pytest.importorskip("av", reason="needs the extra: video")
pytest.importorskip("pyarrow", reason="needs the extra: eval")
pytest.importorskip("transformers", reason="needs the extra: hf")

import clips
from papr import PruneConfig
from papr.cli import app
from papr.config import IMAGENET_MEAN, IMAGENET_STD
from papr.errors import ConfigError, VideoError
from papr.evaluate import DataError, VideoFile, evaluate, open_for, prepare_for
from papr.evaluate.preparing import video_file
from papr.evaluate.runs import Folder
from papr.evaluate.sources import Item
from papr.images import ImageError
from papr.named import create_video, takes_clips
from papr.video import POLICIES, average_views, open_video, read_views, views
from tiny_video import FRAMES, VIDEO_CASES

SIDE = 64
#: A proposal that a configuration can name: glance, on small frames.
KEEP = PruneConfig(0.5, proposal_size=32)


@pytest.fixture
def host() -> nn.Module:
    return VIDEO_CASES["hf_videomae"].make(depth=1, size=(SIDE, SIDE)).eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two videos of different shapes, a broken one, and a list that names a fourth."""
    root = tmp_path / "videos"
    root.mkdir()
    clips.write(root / "wide.mkv", clips.pictures(40, 48, 96))
    clips.write(root / "tall one.mkv", clips.pictures(5, 80, 48))
    (root / "broken.mp4").write_bytes(b"no video")
    (tmp_path / "list.csv").write_text("wide.mkv,1\ntall one.mkv,7\nbroken.mp4,0\ngone.mp4,2\n")
    return root


def by_hand(path: Path, policy: str) -> torch.Tensor:
    """(V, T, 3, S, S) without VideoFile."""
    with open_video(path, "pyav") as video:
        own = replace(POLICIES[policy], clip=FRAMES, size=SIDE)
        cut = views(own, video.frames, video.height, video.width)
        return read_views(video, cut, IMAGENET_MEAN, IMAGENET_STD)


@pytest.mark.parametrize(("policy", "count"), [("videomae", 15), ("uniform", 1)])
def test_views_are_those_of_the_protocol(
    host: nn.Module, folder: Path, policy: str, count: int
) -> None:
    prepare = prepare_for(host, "videomae_base", policy)
    assert isinstance(prepare, VideoFile)
    assert prepare.views == count
    found = prepare(Item("wide.mkv", None, folder / "wide.mkv"))
    assert found.shape == (count, FRAMES, 3, SIDE, SIDE)
    assert torch.equal(found, by_hand(folder / "wide.mkv", policy))


def test_a_list_of_videos_has_one_row_each(host: nn.Module, folder: Path, tmp_path: Path) -> None:
    source = open_for(host, tmp_path / "list.csv", folder)
    assert (source.kind, source.length) == ("videos", 4)
    prepare = prepare_for(host, "", "videomae")
    report = evaluate(host, source, [KEEP], tmp_path / "run", prepare=prepare, batch=2, workers=0)
    (rows,) = Folder(tmp_path / "run").tables()
    found = {(row["id"], row["configuration"]): row for row in rows.to_pylist()}
    dense, pruned = (result.configuration for result in report.results)
    names = ["wide.mkv", "tall one.mkv"]
    assert set(found) == {(name, key) for name in names for key in (dense, pruned)}
    for name, label in zip(names, (1, 7), strict=True):
        with torch.inference_mode():
            mean = average_views(host(by_hand(folder / name, "videomae")).logits)
        assert found[name, dense]["top5"] == mean.argsort(descending=True)[:5].tolist()
        assert {found[name, key]["label"] for key in (dense, pruned)} == {label}
        assert found[name, pruned]["kept"] == pytest.approx(0.5)
    reasons = {sample.id: sample.reason for sample in report.skipped}
    assert set(reasons) == {"broken.mp4", "gone.mp4"}
    assert "cannot read the video" in reasons["broken.mp4"]
    assert "does not exist" in reasons["gone.mp4"]


def test_the_command_evaluates_a_folder_of_videos(
    host: nn.Module, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real clips, a host from a folder of save_pretrained, in the shell."""
    monkeypatch.setattr("papr.hub.reachable", lambda url=None: False)
    host.save_pretrained(tmp_path / "host")
    options = {
        "--model": tmp_path / "host",
        "--data": shared_data / "kinetics-sample",
        "--views": "uniform",
        "--proposal-size": "32",
        "--keep": "0.5",
        "--out": tmp_path / "run",
        "--device": "cpu",
        "--workers": "1",
    }
    words = [str(word) for pair in options.items() for word in pair]
    done = CliRunner().invoke(app, ["eval", *words])
    assert done.exit_code == 0, done.output
    for said in ("2 videos", "GMACs/view", "videos/s"):
        assert said in done.output
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["unit"] == "video"
    (rows,) = Folder(tmp_path / "run").tables()
    assert rows["id"].to_pylist() == ["arm_wrestling.mp4", "deadlifting.mp4"] * 2
    assert rows["label"].null_count == 4


def test_hosts_of_clips_are_told_from_others(tmp_path: Path, host: nn.Module) -> None:
    host.config.save_pretrained(tmp_path)
    assert takes_clips(str(tmp_path))
    assert takes_clips("vivit_base")
    assert not takes_clips("vit_base_patch16_224")
    assert not takes_clips("torchvision/vit_b_16")
    assert not takes_clips("nothing at all")


def test_random_video_hosts_are_the_same_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or no run of one could be taken up again."""
    small = {"hidden_size": 12, "num_attention_heads": 2, "num_hidden_layers": 1}
    monkeypatch.setattr("papr.named.VIDEO_HOSTS", {"small": ("VideoMAEConfig", small)})
    first = create_video("small", random_weights=True)[0].state_dict()
    torch.rand(3)
    second = create_video("small", random_weights=True)[0].state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_is_no_video_is_refused(host: nn.Module, folder: Path, tmp_path: Path) -> None:
    prepare = video_file(host, "")
    with pytest.raises(VideoError, match="expected a file of a video, k1 lies within another"):
        prepare(Item("k1", None, b"bytes"))
    clips.write(folder / "line.mkv", clips.pictures(2, 2, 80))
    with pytest.raises(ImageError, match="expected a video at most 32 times as long as wide"):
        prepare(Item("line.mkv", None, folder / "line.mkv"))
    with pytest.raises(ConfigError, match=r"expected views among videomae, .*, got 'many'"):
        video_file(host, "", "many")
    for data in ("shards/{0..3}.tar", "nobody/clips:test"):
        with pytest.raises(DataError, match="expected a video, a folder or a list of them"):
            open_for(host, data)
    (tmp_path / "pictures").mkdir()
    with pytest.raises(DataError, match="expected videos"):
        open_for(host, tmp_path / "pictures")

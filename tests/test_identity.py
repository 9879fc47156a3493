"""A run is known by what its answers depend on: by all of it, and by nothing else."""

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torchvision import transforms
from torchvision.transforms import v2
from transformers import ViTConfig, ViTModel

import papr
from papr.config import PruneConfig
from papr.environment import environment, pick_device, versions
from papr.errors import ConfigError
from papr.evaluate import ImageFile, Predictor, VideoFile, evaluate, predict
from papr.evaluate.contenders import contenders, facts_of, names
from papr.evaluate.preparing import in_words, libraries, timm_transform, video_file
from papr.proposals import as_proposal, x3d
from papr.proposals.checkpoints import to_layout
from papr.provenance import Weights
from papr.video import POLICIES
from tiny_data import KEEPS, host, pictures
from tiny_video import VIDEO_CASES

STATISTICS = ((0.5,) * 3, (0.5,) * 3)


def double(image):
    return image * 2


class Halver:
    """Says nothing of itself."""

    def __call__(self, item):
        return item


@pytest.mark.parametrize(
    "prepare",
    [
        double,
        Halver(),
        ImageFile(double, *STATISTICS),
        ImageFile(transforms.Compose([transforms.Lambda(double)]), *STATISTICS),
        ImageFile(v2.Compose([v2.Lambda(double)]), *STATISTICS),
    ],
    ids=["function", "object", "transform", "Lambda", "v2.Lambda"],
)
def test_preprocessing_that_does_not_say_what_it_does_is_refused(prepare) -> None:
    with pytest.raises(ConfigError, match="attribute `described`"):
        in_words(prepare)


def test_preprocessing_says_what_it_does() -> None:
    own = timm_transform(host())
    assert "CenterCrop" in in_words(own)
    assert in_words(ImageFile(double, *STATISTICS, described="twice")) == "twice"
    telling = Halver()
    telling.described = "half"
    assert in_words(telling) == "half"


def test_a_run_is_refused_before_its_folder_is_made(tmp_path: Path) -> None:
    data, out = pictures(tmp_path / "pictures", 2), tmp_path / "run"
    with pytest.raises(ConfigError, match="described"):
        evaluate(host(), data, KEEPS, out, prepare=lambda item: item, workers=0)
    with pytest.raises(ConfigError, match="described"):
        predict(Predictor(host, 0.5, device="cpu", prepare=Halver()), data, out, workers=0)
    assert not out.exists()


def test_a_checkpoint_is_known_by_its_content(tmp_path: Path) -> None:
    """Where it lies changes nothing; what lies there now is what is named, and what looks."""
    net = x3d.X3D(2, first_norm=False).eval()
    places = [tmp_path / "a.pth", tmp_path / "b.pyth"]
    for place in places:
        torch.save(to_layout(net.state_dict(), "pytorchvideo"), place)
    here, there = (PruneConfig(0.5, proposal=place) for place in places)
    before, first = facts_of(here), as_proposal(places[0])
    assert facts_of(there) == facts_of(replace(here, proposal=str(places[0]))) == before
    assert before["proposal"].startswith("x3d_s-")
    assert names([here]) == [f"keep 0.5, {before['proposal']}"]
    assert as_proposal(str(places[0])) is first
    digest = hashlib.sha256(places[0].read_bytes()).hexdigest()
    assert first.weights == Weights("checkpoint", str(places[0]), digest)

    with torch.no_grad():
        net.stem.space.weight.neg_()
    stamps = places[0].stat()
    torch.save(to_layout(net.state_dict(), "pytorchvideo"), places[0])
    os.utime(places[0], ns=(stamps.st_atime_ns, stamps.st_mtime_ns))  # as old, and as long
    assert places[0].stat().st_size == stamps.st_size
    second = as_proposal(places[0])
    clip = torch.rand(1, 3, 8, 32, 32)
    with torch.no_grad():
        assert not torch.equal(first.net.forward_features(clip), second.net.forward_features(clip))
    assert facts_of(here) != before == facts_of(there)
    assert second.weights.sha256 != digest


def test_a_run_says_what_network_looks_and_not_what_lies_there_since(tmp_path: Path) -> None:
    place = tmp_path / "a.pth"
    net = x3d.X3D(2, first_norm=False).eval()
    torch.save(to_layout(net.state_dict(), "pytorchvideo"), place)
    config = PruneConfig(0.5, proposal=place)
    case = VIDEO_CASES["hf_videomae"]
    _, pruned = contenders(case.build(), [config])
    predictor = Predictor(case.build, config, device="cpu", prepare=video_file(case.build(), ""))
    predictor.load()
    with torch.no_grad():
        net.stem.space.weight.neg_()
    torch.save(to_layout(net.state_dict(), "pytorchvideo"), place)
    assert facts_of(config) != pruned.facts  # the file is another one now
    assert predictor.facts()["pruning"]["proposal"] == pruned.facts["proposal"]
    again = contenders(case.build(), [config])[1]
    clip = case.pixels(1)
    with torch.no_grad():
        pruned.model(clip), again.model(clip)
    scores = [papr.selection(one.model).scores for one in (pruned, again)]
    assert not torch.equal(*scores)
    assert again.facts != pruned.facts


@pytest.mark.parametrize(
    ("backends", "words", "packages"),
    [
        (("torchcodec", "pyav"), "torchcodec then pyav", ["torchcodec", "av"]),
        (("pyav",), "pyav", ["av"]),
        ((), "none", []),
    ],
)
def test_a_video_run_is_known_by_who_decodes(monkeypatch, backends, words, packages) -> None:
    monkeypatch.setattr(
        "papr.video.decoding.missing", lambda name: "" if name in backends else "not here"
    )
    prepare = VideoFile(POLICIES["uniform"], *STATISTICS)
    assert in_words(prepare).endswith(f"backend={words}")
    assert libraries(host(), prepare) == [*packages, "torchvision"]
    assert in_words(VideoFile(POLICIES["uniform"], *STATISTICS, backend="torchcodec")).endswith(
        "backend=torchcodec" if "torchcodec" in backends else "backend=none"
    )


def test_a_run_is_known_by_what_makes_its_host_and_its_pixels() -> None:
    found = Predictor(host, device="cpu").facts()["versions"]
    assert set(found) == {"papr", "torch", "timm", "pillow", "torchvision"}
    small = ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    assert "transformers" in libraries(ViTModel(small), timm_transform(host()))
    assert set(versions("no-such-package")) == {"papr", "torch", "timm"}
    assert {"pyarrow", "pillow"} <= set(environment(pick_device("cpu")))

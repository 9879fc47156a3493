"""A run is known by what its answers depend on: by all of it, and by nothing else."""

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
from torchvision import transforms
from torchvision.transforms import v2
from transformers import ViTConfig, ViTModel

from papr.config import PruneConfig
from papr.environment import environment, pick_device, versions
from papr.errors import ConfigError
from papr.evaluate import ImageFile, Predictor, VideoFile, evaluate, predict
from papr.evaluate.contenders import facts_of, names
from papr.evaluate.preparing import in_words, libraries, timm_transform
from papr.video import POLICIES
from tiny_data import KEEPS, host, pictures

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


def test_a_checkpoint_is_known_by_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = import_module("papr.evaluate.contenders")  # a function of that name hides it
    monkeypatch.setattr(module, "as_proposal", lambda path: SimpleNamespace(name="x3d_s"))
    places = [tmp_path / "a.pth", tmp_path / "b.pyth"]
    for place in places:
        place.write_bytes(b"weights")
    here, there = (PruneConfig(0.5, proposal=place) for place in places)
    before = facts_of(here)
    assert facts_of(there) == facts_of(replace(here, proposal=str(places[0]))) == before
    assert before["proposal"].startswith("x3d_s-")
    assert names([here]) == [f"keep 0.5, {before['proposal']}"]
    places[0].write_bytes(b"others")
    assert facts_of(here) != before
    predictor = Predictor(host, here, device="cpu")
    predictor._loaded = Predictor(host, device="cpu").load()
    assert predictor.facts()["pruning"] == facts_of(here)


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

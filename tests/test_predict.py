"""Batch inference: the rows of a Predictor, of its run, and of a run that was cut short."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

pytest.importorskip("pyarrow")
import pyarrow as pa
import pyarrow.parquet as pq
from torch.utils.data import DataLoader

import papr
from papr.cli import app
from papr.evaluate import Objects, Predictor, open_source, predict, unpack_mask
from papr.evaluate.ray_engine import _ShardReader
from papr.evaluate.runs import Folder
from papr.evaluate.sources import DataError, Item, Source
from papr.evaluate.stores import Store
from papr.graft import states
from papr.images import load_image
from papr.proposals import clip_nets
from papr.proposals.checkpoints import to_layout
from tiny import CASES

SIZE = 64


def host() -> nn.Module:
    """A tiny ViT with a 4 x 4 grid, the same one every time."""
    import timm

    torch.manual_seed(1)
    options = {"img_size": SIZE, "embed_dim": 48, "depth": 2, "num_heads": 2, "num_classes": 7}
    return timm.create_model("vit_tiny_patch16_224", **options).eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Nine photographs of noise in folders, one broken, and a file that is none."""
    data = tmp_path / "data"
    (data / "more of it").mkdir(parents=True)
    for number in range(9):
        noise = torch.randint(256, (70, 60 + number, 3), dtype=torch.uint8).numpy()
        Image.fromarray(noise).save(data / ("more of it" if number % 2 else ".") / f"{number}%.png")
    (data / "broken.jpg").write_bytes(b"no image")
    (data / "notes.txt").write_text("hello")
    return data


def rows(out: Path) -> list[dict]:
    return pq.read_table(out / "rows").sort_by("position").to_pylist()


def slow_row(model: nn.Module, prepare, path: Path, dense: bool) -> dict:
    """One image by hand: the host's own methods, no hook, no batch."""
    pixels = prepare.transform(load_image(path)).unsqueeze(0)
    with torch.no_grad():
        embedding = model.forward_head(model.forward_features(pixels), pre_logits=True)
        probability = model.head(embedding).softmax(1)[0]
    best = sorted(range(7), key=lambda i: -probability[i])[:5]
    mask = None if dense else papr.selection(model).mask()[0].numpy()
    return {"top5": best, "score": [float(probability[i]) for i in best]} | {
        "embedding": embedding[0].numpy(),
        "mask": mask,
    }


@pytest.mark.parametrize("keep", [0.5, None])
def test_rows_are_what_the_host_answers_image_by_image(folder, tmp_path, keep):
    predictor = Predictor(host, keep, device="cpu")
    found = predict(predictor, folder, tmp_path / "out", batch=4, workers=0)
    assert (found.samples, found.done) == (10, 10)
    prepare = predictor.load().prepare
    slow = host()
    if keep:
        papr.prune(slow, keep, mean=prepare.mean, std=prepare.std)
    got = rows(tmp_path / "out")
    assert len({row["id"] for row in got}) == 10
    for row in got:
        if row["id"] == "broken.jpg":
            assert "broken.jpg" in row["error"]
            answers = {**row, "error": None}
            assert all(answers[name] is None for name in [*predictor.names, "error"])
            continue
        want = slow_row(slow, prepare, folder / row["id"], dense=keep is None)
        assert row["error"] is None
        assert row["top5"] == want["top5"]
        assert row["predicted"] == want["top5"][0]
        np.testing.assert_allclose(row["score"], want["score"], atol=1e-6)
        np.testing.assert_allclose(row["embedding"], want["embedding"], atol=1e-5)
        if keep is None:
            assert row["mask"] is row["grid"] is None
        else:
            assert row["grid"] == [4, 4]
            assert (unpack_mask(row["mask"], row["grid"]) == want["mask"]).all()
            assert want["mask"].sum() == 8
    assert [sample.id for sample in found.skipped] == ["broken.jpg"]
    assert list(found.ignored) == ["notes.txt"]


def test_one_object_serves_bytes_paths_pixels_and_a_dataloader_and_travels_without_its_model(
    folder,
):
    predictor = Predictor(host, 0.5, device="cpu")
    paths = sorted(folder.rglob("*.png"))[:3]
    by_path = predictor({"path": [str(path) for path in paths], "shelf": [7, 8, 9]})
    assert by_path["id"] == [str(path) for path in paths]
    assert by_path["shelf"] == [7, 8, 9]
    assert len(pickle.dumps(predictor)) < 2000 < len(pickle.dumps(predictor.load().host))
    travelled = pickle.loads(pickle.dumps(predictor))
    contents = [path.read_bytes() for path in paths]
    by_bytes = travelled({"bytes": [*contents, b"nothing"], "id": [*"abcd"]})
    assert by_bytes["error"][:3] == [None] * 3
    assert by_bytes["predicted"][3] is by_bytes["mask"][3] is None
    assert by_bytes["error"][3]
    prepare = predictor.load().prepare
    pixels = torch.cat([prepare.transform(load_image(path)).unsqueeze(0) for path in paths])
    errors = ["", "lost", ""]
    (loaded,) = map(predictor, DataLoader([{"pixels": p} for p in pixels], batch_size=3))
    (kept,) = [predictor({"pixels": pixels.numpy(), "error": errors})]
    for name in ("predicted", "mask", "grid"):
        assert by_path[name] == by_bytes[name][:3] == loaded[name]
        assert kept[name] == [by_path[name][0], None, by_path[name][2]]
    assert kept["error"] == [None, "lost", None]
    two = predictor({"pixels": pixels[None, :2]})  # one sample of two views
    assert two["grid"] == [[2, 4, 4]]
    mean = (np.stack(by_path["embedding"][:2])).mean(0)
    np.testing.assert_allclose(two["embedding"][0], mean, atol=1e-5)
    typed = Predictor(host, None, device="cpu", outputs=["masks"], table=True)
    nothing = typed({"bytes": [b""], "id": ["x"]})
    assert isinstance(nothing, pa.Table)
    assert nothing.schema.field("mask").type == pa.binary()
    assert nothing.column_names == ["id", "mask", "grid", "error"]


def test_what_is_wrong_is_said_before_anything_is_made():
    with pytest.raises(papr.errors.ConfigError, match="outputs among"):
        Predictor(host, outputs=["logits"])
    with pytest.raises(papr.errors.ConfigError, match="keep"):
        Predictor(host, 1.5)
    with pytest.raises(papr.errors.ConfigError, match="dtype"):
        Predictor(host, dtype="int8")
    with pytest.raises(papr.errors.ConfigError, match="pixels, bytes or path"):
        Predictor(host, device="cpu")({"id": [1]})
    with pytest.raises(papr.errors.ConfigError, match="2 bytes for a grid"):
        unpack_mask(b"x", (3, 4))


def test_a_host_without_a_classifier_has_embeddings_and_no_labels(folder):
    predictor = Predictor("test_vit", 0.5, device="cpu", num_classes=0, random_weights=True)
    found = predictor({"path": sorted(folder.rglob("*.png"))[:1]})
    assert found["predicted"] == found["top5"] == found["score"] == [None]
    width = predictor.load().host.num_features
    assert found["embedding"][0].shape == (width,)


class StopError(Exception):
    """Stands for a kill: the run ends where it is."""


def test_a_run_goes_on_and_object_storage_reads_like_a_folder(folder, tmp_path):
    whole, cut, stored = tmp_path / "whole", tmp_path / "cut", tmp_path / "stored"
    predictor = Predictor(host, 0.5, device="cpu")
    options = {"batch": 2, "part": 4, "workers": 0}
    predict(predictor, folder, whole, **options)
    seen = []

    def stop(samples: int, _: int | None) -> None:
        seen.append(samples)
        if sum(seen) >= 6:
            raise StopError

    with pytest.raises(StopError):
        predict(predictor, folder, cut, watch=stop, **options)
    assert Folder(cut).count() == 4
    found = predict(predictor, folder, cut, **options)
    assert (found.samples, found.done) == (10, 6)
    assert rows(cut) == rows(whole)
    with pytest.raises(papr.errors.ConfigError, match="pruning"):
        predict(Predictor(host, 0.6, device="cpu"), folder, cut, **options)
    source = open_source(f"file://{folder}")
    assert isinstance(source, Objects)
    predict(predictor, source, stored, **options)
    by_id = {row["id"]: row for row in rows(stored)}
    for row in rows(whole):
        other = by_id[row["id"]]
        assert (row["predicted"], row["mask"]) == (other["predicted"], other["mask"])
    with pytest.raises(papr.errors.PaprError, match="nowhere"):
        open_source(f"file://{folder}/nowhere")


def test_a_folder_of_rays_rows_is_settled(tmp_path):
    """What a killed session may leave: a row twice, a file that was being written."""
    store = Store(f"file://{tmp_path}/out")
    configuration = {"model": "m", "grid": (2, 2)}
    assert store.claim(configuration) == {"model": "m", "grid": [2, 2]}

    def table(shard: list[int], position: list[int], mark: str) -> pa.Table:
        error = [None if p else mark for p in position]
        columns = {"shard": shard, "position": position, "id": [mark] * len(shard), "error": error}
        return pa.table(columns)

    store.write("a.parquet", table([0, 0, 1], [3, 1, 1], "a"))
    store.write("b.parquet", table([0, 0], [0, 3], "b"))
    store.write("c.parquet", table([0, 1, 1, 1], [0, 0, 1, 2], "c"))
    (tmp_path / "out" / "rows" / ".1-d.parquet").write_bytes(b"half")
    store.claim(configuration)
    done = {shard: list(positions) for shard, positions in store.settle().items()}
    assert done == {0: [0, 1, 3], 1: [0, 1, 2]}
    left = [
        (row["shard"], row["position"])
        for name in store.names()
        for row in store.read(name).to_pylist()
    ]
    assert sorted(left) == [(0, 0), (0, 1), (0, 3), (1, 0), (1, 1), (1, 2)]
    assert store.read("b.parquet")["position"].to_pylist() == [0]
    total, skipped = store.count()
    assert total == 6
    assert [sample.reason for sample in skipped] == ["b", "c"]
    store.note("summary.json", {"samples": 6})
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == {"samples": 6}
    assert Store(f"file://{tmp_path}/none").settle() == {}
    with pytest.raises(papr.errors.ConfigError, match="grid"):
        store.claim({"model": "m", "grid": (2, 3)})


class Shards(Source):
    """Two shards of bytes; the second breaks off."""

    kind, shards, length, ignored, note = "shards", ("a", "b"), None, (), ""

    def __init__(self, contents: list[bytes]) -> None:
        self.contents = contents

    def item(self, number):
        raise NotImplementedError

    def items(self, shard):
        for number, content in enumerate(self.contents):
            yield Item(f"{shard}/{number}", None, content)
        if shard:
            raise DataError("b breaks off")

    def identity(self):
        return {"kind": self.kind}


def test_a_shard_that_ray_reads_leaves_out_what_has_rows(folder):
    contents = [path.read_bytes() for path in sorted(folder.rglob("*.png"))[:5]]
    prepare = Predictor(host, device="cpu").load().prepare
    reader = _ShardReader(Shards([*contents, b"nothing"]), 2, prepare)
    done = np.array([1, 2], np.int64).tobytes()
    found = list(reader({"shard": np.array([1]), "done": np.array([done], dtype=object)}))
    assert [len(batch["id"]) for batch in found] == [2, 2, 1]
    whole = {
        name: np.concatenate([list(batch[name]) for batch in found])
        for name in found[0]
        if name != "pixels"
    }
    assert whole["position"].tolist() == [0, 3, 4, 5, 6]
    assert whole["id"].tolist() == ["1/0", "1/3", "1/4", "1/5", "b"]
    assert whole["error"][:3].tolist() == [""] * 3
    assert whole["error"][4] == "b breaks off"
    assert whole["error"][3]
    first = prepare(Item("", None, contents[0]))
    assert (found[0]["pixels"][0] == first.numpy()).all()


def test_the_command_writes_rows_and_a_summary_and_is_run_again_in_no_time(folder, tmp_path):
    out = tmp_path / "out"
    line = ["predict", "--data", str(folder), "--out", str(out), "--model", "test_vit"]
    line += ["--keep", "0.5", "--workers", "0", "--device", "cpu", "--outputs", "labels,masks"]
    line += ["--random-weights"]
    first = CliRunner().invoke(app, line, catch_exceptions=False)
    assert first.exit_code == 0, first.output
    assert "10 samples, 10 of them now" in first.output
    assert "1 sample could not be read, with a row that says why" in first.output
    assert "broken.jpg" in first.output
    assert "Random weights (host): the answers mean nothing" in first.output
    assert (out / "summary.json").is_file()
    names = pq.read_schema(next((out / "rows").glob("*.parquet"))).names
    expected = [
        "shard",
        "position",
        "id",
        "label",
        "predicted",
        "class_name",
        "top5",
        "score",
        "output",
        "mask",
        "grid",
        "error",
    ]
    assert names == expected
    again = CliRunner().invoke(app, line, catch_exceptions=False)
    assert "10 samples, 0 of them now" in again.output
    assert "nothing was left to do" in again.output


def test_a_configuration_that_tune_wrote_is_taken_in_place_of_the_options(folder, tmp_path):
    chosen, out = tmp_path / "chosen.json", tmp_path / "out"
    chosen.write_text(papr.PruneConfig(0.3, proposal_size="input").to_json())
    line = ["predict", "--data", str(folder), "--out", str(out), "--model", "test_vit"]
    line += ["--workers", "0", "--device", "cpu", "--config", str(chosen), "--outputs", "masks"]
    line += ["--random-weights"]
    done = CliRunner().invoke(app, line, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    row = next(row for row in rows(out) if row["error"] is None)
    assert unpack_mask(row["mask"], row["grid"]).sum() == int(0.3 * 100)
    stored = json.loads((out / "configuration.json").read_text())
    assert stored["pruning"]["proposal_size"] == "input"


def test_a_host_pruned_without_a_trace_keeps_its_proposal_whatever_the_file_holds_now(tmp_path):
    path, case = tmp_path / "net.pyth", CASES["hf_videomae"]

    def write(seed: int) -> None:
        torch.manual_seed(seed)
        net = clip_nets.load("x3d_s", pretrained=False).net
        torch.save({"model_state": to_layout(net.state_dict(), "pytorchvideo")}, path)

    write(0)
    statistics = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    pruned = papr.prune(case.build(), 0.5, str(path), trace=False, **statistics)
    proposal = states(pruned)[0].proposal
    write(1)
    Predictor(lambda: pruned, None, device="cpu", outputs=["masks"]).load()
    assert states(pruned)[0].config.trace
    assert states(pruned)[0].proposal is proposal

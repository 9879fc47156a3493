"""What the README says: its code runs, its figures are the stored ones."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch

import papr
from clips import pictures
from clips import write as write_clip
from tiny_data import pictures as small_pictures
from tiny_video import VIDEO_CASES

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import tables  # noqa: E402

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMPARISONS = (ROOT / "docs" / "comparisons.md").read_text(encoding="utf-8")
RESULTS = ROOT / "benchmarks" / "results"


def test_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every Python block in order, in one namespace, with random weights and a smaller host."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 6
    usage, later, evaluation, video, reading, options = (
        block.replace("pretrained=True", "pretrained=False").replace("vit_base", "vit_tiny")
        for block in blocks
    )
    names = {"images": torch.randn(2, 3, 224, 224), "tokens": torch.randn(2, 98, 192)}
    names["photograph"] = torch.rand(3, 224, 224)
    exec(usage, names)
    assert names["logits"].shape == (2, 1000)
    assert not papr.is_pruned(names["model"])
    for line, tokens in zip(
        later.splitlines(), (117 - 6 * 8, 117 + 4, int(0.8 * 117)), strict=True
    ):
        exec(line, names)
        names["model"](names["images"])
        assert papr.selection(names["model"]).tokens == tokens
    run_evaluation(evaluation, names, tmp_path)
    before, after = options.split("chosen =")
    exec(before, names)
    names["model"](names["images"])
    exec("chosen =" + after, names)
    assert names["chosen"].indices.shape == (2, 98)
    run_video(video, reading, tmp_path)


def run_evaluation(block: str, names: dict[str, object], folder: Path) -> None:
    """The same, on three small pictures."""
    photos = small_pictures(folder / "photos", 3)
    exec(block.replace('"photos"', repr(str(photos))), names)
    assert [result.images for result in names["report"].results] == [3, 3, 3]


def run_video(block: str, reading: str, folder: Path) -> None:
    """The same host, small and with random weights, in place of the one from the hub."""
    case = VIDEO_CASES["hf_videomae"]
    block, loads = re.subn(
        r"host = transformers\.(\w+)\.from_pretrained\(.*?\n\)", "", block, flags=re.S
    )
    assert loads == 1
    clips = torch.randn(1, 16, 3, 224, 224)
    names = {"host": case.build(depth=1, size=(224, 224), num_frames=16).cpu(), "clips": clips}
    exec(block, names)
    assert names["logits"].shape == (1, 10)
    assert papr.selection(names["host"]).indices.shape == (1, int(0.35 * 1568))
    with torch.no_grad():
        exec(reading.replace("clip.mp4", str(write_clip(folder / "clip.mkv", pictures(70)))), names)
    assert names["probabilities"].sum() == pytest.approx(1, abs=1e-5)


PAGES = [(ROOT / page).read_text(encoding="utf-8") for page in tables.PAGES]


@pytest.mark.parametrize("text", PAGES, ids=tables.PAGES)
def test_tables_are_the_stored_ones(text: str) -> None:
    """`python benchmarks/tables.py` writes them."""
    assert tables.filled(text) == text


def test_every_table_stands_somewhere() -> None:
    for name in tables.TABLES:
        assert sum(f"<!-- {name} -->" in text for text in PAGES) == 1, name


def test_speed_on_a_cpu_is_what_the_words_say() -> None:
    """In float32 about twice as fast at 0.5; no more memory than dense, soon pruned."""
    stored = json.loads((RESULTS / "speed-cpu.json").read_text())
    for row in stored["rows"]:
        if row["keep"] == 0.5 and row["dtype"] == "float32":
            assert row["speedup"][0] >= 1.85
        if row["dtype"] == "bfloat16":
            assert 1 <= row["speedup"][0] <= row["ideal"]
    for cost in stored["costs"].values():
        assert cost["peak_mb"]["pruned"] <= cost["peak_mb"]["dense"] * 1.01
        assert cost["seconds_to_prune"] < 1
    assert README.count("twice as fast") == 1
    assert "on a CPU in float32 about twice as fast" in README


def cells(*starts: str) -> list[str]:
    """The cells of the README's one table row that begins with these."""
    start = "| " + " | ".join(starts) + " |"
    (line,) = (line for line in README.splitlines() if line.startswith(start))
    return [cell.strip() for cell in line.strip("|").split("|")]


def times(speedup: list[float]) -> str:
    return "{:.2f}x ({:.2f}-{:.2f})".format(*speedup)


def test_pyramids_reach_the_bar() -> None:
    """What Swin-B and ConvNeXt-B were meant to reach on two CPU cores."""
    swin, convnext = "swin_base_patch4_window7_224", "convnext_base"
    bars = {
        (swin, None, 0.65): 1.20,
        (swin, None, 0.5): 1.33,
        (swin, "kept", 0.5): 1.65,
        (convnext, None, 0.65): 1.38,
        (convnext, None, 0.5): 1.68,
    }
    stored = json.loads((RESULTS / "pyramid_speed-cpu.json").read_text())
    found = {(r["model"], r.get("attention"), r["keep"]): r["speedup"][0] for r in stored["rows"]}
    assert {key for key, bar in bars.items() if found[key] < bar} == set()


def test_export_and_int8_figures_are_the_stored_ones() -> None:
    names = {"eager": "PyTorch, eager", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
    for row in json.loads((RESULTS / "export_speed.json").read_text())["rows"]:
        figures = [f"{row[which][0]:.0f}" for which in ("dense_ms", "pruned_ms")]
        assert cells(names[row["runtime"]])[1:] == [*figures, times(row["speedup"])]
    rows = json.loads((RESULTS / "int8-cpu.json").read_text())["rows"]
    for name, compiled in (("eager", False), ("compiled", True)):
        found = [row["over_float32_dense"][0] for row in rows if row["compiled"] == compiled]
        assert cells(name)[1:] == [f"{value:.2f}x" for value in found]
    gain = next(
        r["over_same_dtype_dense"][0] for r in rows if r["compiled"] and r["rival"] == "int8 pruned"
    )
    assert f"compiled it gains {gain:.2f}x" in README


def test_video_figures_are_the_stored_ones_and_reach_the_bar() -> None:
    """The bars: 0.92 of what MACs promise on two CPU cores, memory below 45 % of dense's."""
    stored = json.loads((RESULTS / "video_speed-cpu.json").read_text())
    names = {"efficientnet_lite0": "EfficientNet-Lite0", "x3d_m": "X3D-M"}
    by_key = {(r["proposal"], r["keep"], r["dtype"]): r for r in stored["rows"]}
    assert len(by_key) == 12
    for (proposal, keep, dtype), row in by_key.items():
        assert row["gmacs_host"] == pytest.approx(
            {1: 180.3, 0.45: 70.9, 0.35: 53.9}[keep], rel=0.01
        )
        assert row["efficiency"] >= 0.92
        if keep == 1:
            continue
        found = cells(names[proposal], f"{keep:g}")[2:]
        dense = by_key[proposal, 1, dtype]["gmacs_host"]
        gmacs = f"{row['gmacs_host']:.2f} + {row['gmacs_proposal']:.2f} (dense {dense:.2f})"
        assert found[:2] == [gmacs, f"{row['ideal']:.2f}x"]
        assert found[2 if dtype == "float32" else 3] == times(row["speedup"])
    for mode in ("inference", "with_gradients"):
        memory = stored["memory"][mode]
        assert memory["ratio"] < 0.45
        assert f"{memory['ratio']:.0%} " in README
        assert f"({memory['pruned_mb']:.0f} of {memory['dense_mb']:.0f} MB" in README


def test_figures_of_moving_people_are_the_stored_ones() -> None:
    stored = json.loads((RESULTS / "video_people.json").read_text())
    found = {(r["video"], r["selection"], r["keep"]): r["change_on_kept"] for r in stored["rows"]}
    labels = {
        "papr": "papr",
        'papr, score="motion" (weight 0.5)': 'papr, `score="motion"`',
        "centre": "centre of the frame",
        "random": "random patches",
    }
    columns = [(v, k) for v in ("arm_wrestling", "deadlifting") for k in (0.45, 0.35, 0.2)]
    for selection, label in labels.items():
        row = [f"{found[video, selection, keep]:.3f}" for video, keep in columns]
        assert f"| {label} | " + " | ".join(row) + " |" in README
    for video, keep in columns:  # significance never saw the motion it is judged by
        assert found[video, "papr", keep] > found[video, "random", keep] * 1.1
        assert found[video, "papr", keep] > found[video, "centre", keep]


@pytest.mark.parametrize("name", re.findall(r"\]\((?!http)([^)#]+)\)", README))
def test_links_lead_somewhere(name: str) -> None:
    assert (ROOT / name).is_file()


def test_digits_figures_are_the_stored_ones() -> None:
    """And what the trained host must show: see its own test for the figures themselves."""
    stored = json.loads((ROOT / "examples" / "cluttered_digits" / "results.json").read_text())
    found = {
        (
            ", ".join(filter(None, (row["name"], row["note"]))),
            f"{row['keep']:g}",
            f"{100 * row['accuracy']:.1f}",
            f"{1e3 * row['gmacs']:.1f}",
            times(row["speedup"]),
        )
        for row in stored["rows"]
    }
    digits = README[README.index("examples/cluttered_digits") :].split("\n\n")[1]
    shown = [tuple(line.strip("| ").split(" | ")) for line in digits.splitlines()[2:]]
    assert len(shown) >= 8
    for name, *figures in shown:
        assert (name.removesuffix(" alone"), *figures) in found, name


def test_sentences_on_merging_are_of_the_stored_figures() -> None:
    stored = json.loads((RESULTS / "merging_speed-cpu.json").read_text())
    speeds = {row["name"]: f"{row['speedup'][0]:.2f}x" for row in stored["rows"]}
    text = " ".join(README.split())
    assert (
        f"with ToMe (r = 8) in the second half {speeds['papr, keep 0.6, and ToMe, r = 8']}" in text
    )
    assert f"ToMe alone is {speeds['ToMe, r = 8']} at r = 8 and {speeds['ToMe, r = 14']}" in text


def share(kind: str, way: str, keep: str, of: str = "top1") -> float:
    """A figure of masked_accuracy.json."""
    stored = json.loads((RESULTS / "masked_accuracy.json").read_text())
    assert stored["photographs"] == 250
    found: float = stored["pictures"][kind][of][way][keep][0]
    return found


def test_where_pruning_earns_its_place_and_where_it_does_not() -> None:
    """As they are, the smaller picture wins; off the centre PaPr does, and the centre fails."""
    for keep in ("0.5", "0.3"):
        for smaller in ("smaller picture", "smaller picture, enlarged"):
            assert share("off centre", smaller, keep, "glance less") > 0.10
        assert share("off centre", "centre", keep, "glance less") > 0.15
        assert share("off centre", "random", keep, "glance less") > 0.3
        assert share("as they are", "smaller picture, enlarged", keep, "glance less") < 0
        assert share("as they are", "random", keep, "glance less") > 0.3
    stored = json.loads((RESULTS / "masked_accuracy.json").read_text())["pictures"]
    half = share("off centre", "glance", "0.5")
    assert half == pytest.approx(stored["off centre"]["whole"][0], abs=0.06)


def test_figures_of_maps_are_the_stored_ones() -> None:
    quality = json.loads((RESULTS / "cam_quality.json").read_text())
    for figures in quality["top1"].values():
        assert "| " + " | ".join(f"{value:.3f}" for value in figures.values()) + " |" in COMPARISONS
    for row in quality["quality"]["all images"].values():
        if row["images"] == 500:
            figures = (row["agrees"], row["deletion"], row["insertion"])
            assert "| " + " | ".join(f"{value:.3f}" for value in figures) + " |" in COMPARISONS
    softcam, mean = (quality["top1"][f"{name} at 160 px"] for name in ("softcam", "papr"))
    text = " ".join(README.split())
    assert f"{softcam['0.3']:.3f} against {mean['0.3']:.3f} top-1 at keep 0.3" in text
    assert f"({softcam['0.5']:.3f} against {mean['0.5']:.3f} at 0.5" in text
    for row in json.loads((RESULTS / "cam_speed-cpu.json").read_text())["methods"].values():
        if row["slower"]["16"][0] < 100:
            assert "{:.2f} ({:.2f}-{:.2f})".format(*row["slower"]["16"]) in COMPARISONS


def test_no_figure_was_left_to_fill_in() -> None:
    texts = [README, *(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md"))]
    assert not [found for text in texts for found in re.findall(r"@[A-Z][A-Z0-9]*@", text)]


def test_figures_of_reading_are_the_stored_ones() -> None:
    stored = json.loads((RESULTS / "evaluate_speed-cpu.json").read_text())
    shares = [turn["host"] / turn["evaluation"] for turn in stored["turns"]]
    assert [turn["images"] for turn in stored["turns"]] == [500, 500]
    text = f"at {stored['share_of_host'][0]:.3f} of the"
    assert text in README
    docs = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    assert text in docs
    assert f"({min(shares):.3f} and {max(shares):.3f} in two rounds" in docs

"""What is imported when: nothing heavy for help, no host library for papr, any room by itself."""

import ast
import importlib
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import papr
from papr import hub, names
from papr.baselines.cams import METHODS
from papr.measure.curves import STEPS
from papr.proposals import clip_nets
from papr.video import POLICIES

SOURCE = Path(papr.__file__)
HEAVY = (
    *("torch", "timm", "transformers", "torchvision", "numpy", "PIL", "huggingface_hub", "skimage"),
    *("matplotlib", "plotly", "pyarrow", "datasets", "webdataset", "ray", "av", "torchcodec"),
    *("onnx", "onnxscript", "onnxruntime", "openvino"),
)


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_help_and_refused_options_need_nothing_heavy() -> None:
    """All commands' help, the version, and options that cannot be read, in one process."""
    code = f"""
import sys
from papr.cli import _COMMANDS, app
calls = [["--help"], ["--version"], *([name, "--help"] for name in _COMMANDS)]
calls += [["eval", "--no-such"], ["eval", "--data", "x", "--keep", "2"], ["bench", "--keep", "no"]]
calls += [["bench", "--dtype", "float8"], ["tune", "--data", "x", "--merge-r", "few"]]
sys.stdout = sys.stderr
for call in calls:
    try:
        app(call)
    except (SystemExit, ValueError) as error:
        refused = bool(error.code if isinstance(error, SystemExit) else str(error))
        assert refused == (call not in calls[: len(_COMMANDS) + 2]), (call, error)
    found = [name for name in {HEAVY} if name in sys.modules]
    assert not found, (call, found)
sys.__stdout__.write("lean")
"""
    assert run(code) == "lean"


def test_papr_imports_no_host_library() -> None:
    """Nor an extra, nor a compiler, with every public name in use."""
    code = f"""
import sys
from papr import *
import papr
papr.baselines, papr.measure, papr.video, prune
print([name for name in {(*HEAVY, "torch._dynamo")} if name in sys.modules])
"""
    assert set(ast.literal_eval(run(code))) <= {"torch", "numpy", "PIL"}


class TestNames:
    def test_those_that_are_lazy_are_those_a_type_checker_sees(self) -> None:
        imported: dict[str, str] = {}
        for node in ast.walk(ast.parse(SOURCE.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("papr."):
                imported |= {name.name: node.module or "" for name in node.names}
        where = {name: f"papr.{room}" for room, found in papr._WHERE.items() for name in found}
        assert where == imported
        assert sorted(where) == sorted(papr.__all__)

    def test_they_are_the_rooms_own(self) -> None:
        assert papr.prune is importlib.import_module("papr.pruning").prune
        assert papr.prune.__module__ == "papr.pruning"
        assert pickle.loads(pickle.dumps(papr.prune)) is papr.prune
        config = papr.PruneConfig(0.3, merge=papr.Merge(8))
        assert pickle.loads(pickle.dumps(config)) == config

    def test_dir(self) -> None:
        assert {*papr.__all__, "baselines", "measure", "video", "__version__"} <= set(dir(papr))

    def test_what_is_not_there(self) -> None:
        with pytest.raises(AttributeError, match="module 'papr' has no attribute 'prnue'"):
            papr.prnue  # noqa: B018
        with pytest.raises(ImportError, match="prnue"):
            from papr import prnue  # noqa: F401
        assert not hasattr(papr, "__wrapped__")


def test_every_room_can_be_imported_first() -> None:
    """Each where nothing of papr is there yet: no circle needs an order."""
    rooms = [
        ".".join(path.relative_to(SOURCE.parents[1]).with_suffix("").parts)
        for path in sorted(SOURCE.parent.rglob("*.py"))
        if path.stem not in ("__init__", "__main__")
    ]
    code = f"""
import sys
for room in {rooms}:
    for name in [name for name in sys.modules if name.partition(".")[0] == "papr"]:
        del sys.modules[name]
    try:
        __import__(room)
    except ImportError as error:
        if (error.name or "").startswith("papr"):
            print(room, repr(error), flush=True)
    except Exception as error:
        print(room, repr(error), flush=True)
"""
    assert len(rooms) > 100
    assert run(code) == ""


def test_names_that_help_offers_are_what_they_name() -> None:
    assert names.CLIP_NETS == clip_nets.NAMES
    assert tuple(POLICIES) == names.POLICIES
    assert names.CAMS == METHODS
    assert names.CURVE_STEPS == STEPS
    assert hub.VIDEO_HOSTS is names.VIDEO_HOSTS

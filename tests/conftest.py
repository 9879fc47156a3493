"""Shared by all tests: where the optional data lies, one tolerance table, one thread setting."""

import importlib
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from bounds import newer, read

# rich's consoles keep the width that they find in COLUMNS when they are made: they are made here,
# without it, so that a test that sets it is heeded whatever ran before in its process
os.environ.pop("COLUMNS", None)
importlib.import_module("papr.cli.common")

SHARED = Path(os.environ.get("PAPR_SHARED", Path(__file__).parents[2] / "shared")) / "data"

#: Where the contract tests run; `PAPR_TEST_DEVICE=cuda make test` runs them on a GPU.
DEVICE = torch.device(os.environ.get("PAPR_TEST_DEVICE", "cpu"))

# float32 is float32 on a GPU too, where convolutions round to TF32 unless told not to
torch.backends.cudnn.allow_tf32 = False
torch.set_float32_matmul_precision("highest")

#: Largest absolute difference that rounding explains, for values of order 1.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 1e-2}

#: Files whose tests wait more than they compute: they come first, so that no worker ends with them.
LONG = ("test_ray", "test_resume")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--capabilities",
        type=Path,
        help="write the table of what works there, from the outcomes of this run",
    )

    parser.addoption(
        "--all",
        action="store_true",
        help="run the exhaustive tests too: more hosts of kinds that are tested without it",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Workers of pytest-xdist and what they start share the cores instead of fighting for them."""
    config.addinivalue_line("markers", "capability(column): decides a column of the table")
    config.addinivalue_line("markers", "exhaustive: more hosts of each kind; run with --all")
    if config.getoption("--capabilities") and not hasattr(config, "workerinput"):
        from capabilities import Recorder

        config.pluginmanager.register(Recorder(config.getoption("--capabilities")))
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1:
        threads = max(1, (os.cpu_count() or 1) // workers)
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
        torch.set_num_threads(threads)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests that decide a cell of the capabilities' table say so in their reports.

    Those marked as exhaustive run over one host of each kind, and over the others with --all.
    """
    from capabilities import LIMITS, cell_of, family_of
    from tiny import KINDS

    def more_of_a_kind(item: pytest.Item) -> bool:
        return item.get_closest_marker("exhaustive") is not None and family_of(item) not in KINDS

    items.sort(key=lambda item: not item.fspath.purebasename.startswith(LONG))
    if not config.getoption("--all"):
        config.hook.pytest_deselected(items=[item for item in items if more_of_a_kind(item)])
        items[:] = [item for item in items if not more_of_a_kind(item)]
    for item in items:
        cell = cell_of(item)
        if cell is not None:
            item.user_properties.append(("capability", list(cell)))
            if cell in LIMITS:
                item.add_marker(pytest.mark.xfail(reason=LIMITS[cell], strict=True))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A library newer than its bound is reported. It fails nothing: only a test's outcome does."""
    for line in newer(read()):
        terminalreporter.write_line(f"newer than constraints/tested.txt: {line}")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def shared_data() -> Path:
    """The folder of real photographs and golden outputs; tests that need it skip without it."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the data folder {SHARED} (set PAPR_SHARED)")
    return SHARED


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Two images of one name in two folders, one of them grey, and a broken one."""
    folder = tmp_path / "photographs"
    (folder / "more").mkdir(parents=True)
    noise = torch.randint(256, (60, 90, 3), dtype=torch.uint8).numpy()
    Image.fromarray(noise).save(folder / "a.png")
    Image.fromarray(noise[..., 0]).save(folder / "more" / "a.png")
    (folder / "broken.jpg").write_bytes(b"no image")
    return folder


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Hugging Face's `datasets`, with a cache of its own, where no hub can be reached."""
    datasets = pytest.importorskip("datasets", reason="needs the extra: eval")
    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("papr.hub.reachable", lambda url=None: False)
    return datasets

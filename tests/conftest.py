"""Shared by all tests: where the optional data lies, one tolerance table, one thread setting."""

import os
from pathlib import Path

import pytest
import torch

SHARED = Path(os.environ.get("PAPR_SHARED", Path(__file__).parents[2] / "shared")) / "data"

#: Largest absolute difference that rounding explains, for values of order 1.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 1e-2}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def shared_data() -> Path:
    """The folder of real photographs and golden outputs; tests that need it skip without it."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the data folder {SHARED} (set PAPR_SHARED)")
    return SHARED


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fail rather than skip where a GPU is promised, so that a CUDA run cannot pass by skipping."""
    if os.environ.get("PAPR_REQUIRE_CUDA") and not torch.cuda.is_available():
        raise pytest.UsageError("PAPR_REQUIRE_CUDA is set and no CUDA device is there")

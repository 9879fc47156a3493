"""What other libraries say that means nothing to the user: silenced in the command line alone."""

import logging
import subprocess
import sys

import pytest

from papr.cli.quiet import hush

ABOUT_ENUMS = "%s is an Enum subclass and is now natively supported by torch.compile as ..."


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What the logger of torch says; it is as before in the end."""
    logger = logging.getLogger("torch.utils._pytree")
    filters, propagate = list(logger.filters), logger.propagate
    logger.filters = []  # a command that ran in this process has silenced it already
    logger.addHandler(caplog.handler)
    logger.propagate = False
    yield caplog
    logger.removeHandler(caplog.handler)
    logger.filters, logger.propagate = filters, propagate


def test_only_these_words_of_this_logger_are_silenced(log: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("torch.utils._pytree")
    logger.warning(ABOUT_ENUMS, "<enum>")
    hush()
    logger.warning(ABOUT_ENUMS, "<enum>")
    logger.warning("something that matters")
    said = [record.getMessage() for record in log.records]
    assert said == [ABOUT_ENUMS % "<enum>", "something that matters"]


def test_who_imports_papr_hears_all() -> None:
    code = "import papr.cli, logging; print(logging.getLogger('torch.utils._pytree').filters)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_nothing_is_said_before_a_host_of_transformers() -> None:
    """Whatever torch and torchao are installed."""
    pytest.importorskip("torchao", reason="transformers imports it where it is there")
    code = "from papr.cli.quiet import hush; hush(); import torchao.quantization"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "is an Enum subclass" not in done.stderr

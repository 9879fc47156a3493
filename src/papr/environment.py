"""The device that runs, and the versions: what must stand beside every stored figure."""

import contextlib
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import papr
from papr.errors import ConfigError
from papr.words import counted

if TYPE_CHECKING:  # the command line asks for a device before it needs torch
    import torch

#: That read, decode, resize or make hosts, where they are installed.
_PACKAGES = (
    "pillow",
    "torchvision",
    "transformers",
    "av",
    "torchcodec",
    "pyarrow",
    "datasets",
    "webdataset",
)


def pick_device(name: str) -> "torch.device":
    """A device by name; "auto" takes CUDA, then Apple's MPS, then the CPU.

    Under torchrun that is the GPU of this process's number.
    """
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            rank = os.environ.get("LOCAL_RANK")
            return torch.device(f"cuda:{int(rank) % torch.cuda.device_count()}" if rank else "cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"cannot use the device {name!r}: {str(error).splitlines()[0]}") from None
    return device


def describe_device(device: "torch.device") -> str:
    """The device in words, for people and result files."""
    import torch

    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    if device.type == "cpu":
        return f"{_processor()}, {counted(torch.get_num_threads(), 'thread')}"
    return str(device)


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def versions(*packages: str) -> dict[str, str]:
    """Of papr, torch and timm, and of those of other packages that are installed."""
    import timm
    import torch

    found = {"papr": papr.__version__, "torch": torch.__version__, "timm": timm.__version__}
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def environment(device: "torch.device") -> dict[str, Any]:
    """Versions and machine, to lie beside every stored figure."""
    return {
        **versions(*_PACKAGES),
        "python": platform.python_version(),
        "device": describe_device(device),
        "cpus": os.cpu_count(),
    }

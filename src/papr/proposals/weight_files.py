"""Weights out of a file that somebody else wrote, without running any code in it."""

import contextlib
import io
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from papr.errors import ProposalError, one_line
from papr.provenance import digest

SUFFIXES = (".pth", ".pt", ".pyth", ".safetensors")
#: Where the projects that write checkpoints put the weights.
_WRAPPERS = ("model_state", "state_dict")
#: What the lines have in them with which torch.load leads up to what it could not read.
_ADVICE = ("Weights only load failed", "Please file an issue", "weights_only", "arbitrary code")


def read(path: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors of a checkpoint, by name, on the CPU; and the SHA-256 of what was read.

    The file is read once, so that the digest is of the weights returned whatever happens to it.

    Args:
        path: safetensors by its suffix, anything else as torch.save wrote it: the weights under
            "model_state", under "state_dict", or bare. What else lies beside them (training
            records, arrays) is passed over, unless it is of a class that derives from dict or list.
            A common prefix "module." is dropped.

    Raises:
        ProposalError: no file, an empty one, one that cannot be read or that holds no tensors.
    """
    if not path.is_file():
        raise ProposalError(f"expected a checkpoint file, {path} is none")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ProposalError(f"cannot read the checkpoint {path} ({one_line(error)})") from error
    if not content:
        raise ProposalError(f"expected a checkpoint, {path} is empty")
    try:
        unpacked = _unpack(content, path.suffix)
    except Exception as error:  # whatever a damaged file makes the unpickler raise
        raise ProposalError(
            f"cannot read the checkpoint {path} ({_reason(error)}): damaged, or it holds what is "
            "not weights"
        ) from error
    return _weights(unpacked, path), digest(content)


def read_known(path: Path, sha256: str, package: str) -> bytes:
    """What is in a file that this version of papr knows, after a check of all of it.

    Args:
        path: of the file.
        sha256: of what must be in it.
        package: that brings it, for messages.

    Raises:
        ProposalError: the file is missing, or something else is in it.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ProposalError(f"cannot read the weights {path}: {error.strerror}") from None
    found = digest(content)
    if found != sha256:
        raise ProposalError(
            f"expected SHA-256 {sha256} for {path}, got {found}: the file is damaged or "
            f"replaced; reinstall {package}"
        )
    return content


def _unpack(content: bytes, suffix: str) -> Any:
    if suffix.lower() == ".safetensors":
        from safetensors.torch import load

        return load(content)
    with _stand_ins(content):
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _reason(error: Exception) -> str:
    """What went wrong, without torch.load's advice to run the file's code or to report a bug."""
    lines = [line.strip().strip(".") for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if not any(words in line for words in _ADVICE)]
    return f"{type(error).__name__}: {said[0]}" if said else one_line(error)


class _StandIn:
    """Takes the place of whatever class a checkpoint names, and does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "_StandIn":
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


@contextlib.contextmanager
def _stand_ins(content: bytes) -> Iterator[None]:
    """Let torch.load read past objects it does not trust, without importing or running them.

    mmaction2's checkpoints carry training records (mmengine's HistoryBuffer, NumPy arrays), at
    which `weights_only=True` stops.
    """
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(content))
    except (ValueError, RuntimeError, pickle.UnpicklingError, EOFError):
        names = []  # the format before torch 1.6 cannot be asked; torch.load then decides
    with torch.serialization.safe_globals([(_StandIn, name) for name in names]):
        yield


def _weights(content: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(content, dict):
        for wrapper in _WRAPPERS:
            if isinstance(content.get(wrapper), dict):
                content = content[wrapper]
                break
    if not isinstance(content, dict) or not content:
        got = "an empty dict" if content == {} else type(content).__name__
        raise ProposalError(f"expected a dict of tensors in {path}, got {got}")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ProposalError(
                f"expected tensors by name in {path}, bare or under "
                f"{' or '.join(map(repr, _WRAPPERS))}, got {type(value).__name__} under {key!r}"
            )
    prefix = "module." if all(key.startswith("module.") for key in content) else ""
    return {key[len(prefix) :]: value for key, value in content.items()}

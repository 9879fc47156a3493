"""Weights by name, without half a minute of retries where no hub can be reached."""

import contextlib
import logging
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

import torch
from torch import nn

from papr.ambient import neutral
from papr.config import IMAGENET_MEAN, IMAGENET_STD, Triple, check_statistics
from papr.errors import ConfigError, one_line
from papr.names import VIDEO_HOSTS as VIDEO_HOSTS
from papr.provenance import FLAG

_TIMEOUT = 3.0  # seconds

#: Classes of errors that speak of the network, whatever library raises them.
_NETWORK = {
    "ConnectionError",
    "ConnectError",
    "HTTPError",
    "LocalEntryNotFoundError",
    "OfflineModeIsEnabled",
    "TimeoutError",
    "TimeoutException",
    "URLError",
}


def create(name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    """`timm.create_model`; where there is no network, weights come from the cache alone.

    Raises:
        Exception: whatever timm and the hub's client raise when the weights cannot be had.
    """
    import timm

    random = not pretrained and not kwargs.get("checkpoint_path")
    online = patient_only_online() if pretrained else contextlib.nullcontext()
    with online, neutral(restores=not random):  # whether the hub answers is asked before
        model: nn.Module = timm.create_model(name, pretrained=pretrained, **kwargs)
    return model


def source_of(model: nn.Module, name: str) -> str:
    """Where timm has the weights of a model from: a repository of the hub, or an address."""
    config = getattr(model, "pretrained_cfg", None) or {}
    return str(config.get("hf_hub_id") or config.get("url") or name)


def no_weights(name: str, error: Exception, url: str | None = None) -> ConfigError:
    """What to raise where weights cannot be had and nobody asked for random ones.

    Args:
        name: of the model.
        error: what came instead.
        url: where they are; None for the Hugging Face hub.
    """
    return ConfigError(f"cannot have the weights of {name} ({why_not(error, url)}): {FLAG}")


def why_not(error: Exception, url: str | None = None) -> str:
    """In one line, whether it is the network, a file or its hash that keeps weights away."""
    text = one_line(error)
    if "hash" in str(error).lower():
        return f"hash: {text}"
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if not kinds & _NETWORK and "connect" not in text:
        return f"file: {text}"
    return f"network: {text}" if reachable(url) else f"network: {_server(url)} cannot be reached"


def video_statistics(host: nn.Module, name: str) -> tuple[Triple, Triple]:
    """What a video host's pixels are normalised with, mean and std.

    Args:
        host: what `create_video(name)` returned.
        name: where its processor's file is looked for too. Where there is none: ViViT's processor
            has 0.5 throughout, the others ImageNet's.
    """
    if name not in VIDEO_HOSTS:
        mean, std = processor_statistics(name)
        if mean is not None and std is not None:
            return mean, std
    if getattr(getattr(host, "config", None), "model_type", None) == "vivit":
        return (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    return IMAGENET_MEAN, IMAGENET_STD


def processor_statistics(name: str) -> tuple[Triple | None, Triple | None]:
    """Mean and std in the preprocessor_config.json of a model of transformers.

    (None, None) where there is no such file, or nothing in it.
    """
    from transformers import ImageProcessingMixin

    with contextlib.suppress(OSError), patient_only_online():
        found, _ = ImageProcessingMixin.get_image_processor_dict(name)
        return check_statistics(found.get("image_mean"), found.get("image_std"))
    return None, None


def load_processor(name: str) -> Any | None:
    """The image processor of a model of transformers; None where there is none to be had."""
    from transformers import AutoImageProcessor

    with contextlib.suppress(OSError, ValueError), patient_only_online():
        return AutoImageProcessor.from_pretrained(name)
    return None


def fetch(url: str) -> Path:
    """The file at `url`, downloaded once into torch.hub's folder of checkpoints.

    Raises:
        OSError: it is not there yet and cannot be had.
    """
    path = downloaded(url)
    if not path.is_file():
        check_reachable(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        named = re.search(r"-([0-9a-f]{8,})\.\w+$", path.name)  # the hash, where a name carries it
        prefix = named and named[1]
        torch.hub.download_url_to_file(url, str(path), prefix, progress=False)  # whole, or not
    return path


def downloaded(url: str) -> Path:
    """Where torch.hub keeps what it downloaded from `url`."""
    return Path(torch.hub.get_dir(), "checkpoints", Path(urlsplit(url).path).name)


def check_reachable(url: str) -> None:
    """Raise ConnectionError, within seconds, where the server of `url` does not answer."""
    if not reachable(url):
        raise ConnectionError(f"{urlsplit(url).hostname} cannot be reached")


def reachable(url: str | None = None) -> bool:
    """Whether a server answers at all; taken for granted behind a proxy.

    Args:
        url: anything on that server; None for the Hugging Face hub.
    """
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY")):
        return True
    endpoint = _endpoint(url)
    port = endpoint.port or (80 if endpoint.scheme == "http" else 443)
    try:
        with socket.create_connection((endpoint.hostname or "", port), timeout=_TIMEOUT):
            return True
    except OSError:
        return False


def _endpoint(url: str | None) -> SplitResult:
    return urlsplit(url or os.environ.get("HF_ENDPOINT", "https://huggingface.co"))


def _server(url: str | None) -> str:
    return _endpoint(url).hostname or "the server"


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """Without transformers' own progress bars, which would stand among ours."""
    from transformers.utils import logging as bars

    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()


@contextlib.contextmanager
def patient_only_online() -> Iterator[None]:
    """Put the hub's client in offline mode, quietly, where the hub is out of reach."""
    from huggingface_hub import constants

    if reachable():
        yield
        return
    logger = logging.getLogger("timm")
    offline, level = constants.HF_HUB_OFFLINE, logger.level
    constants.HF_HUB_OFFLINE = True
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline
        logger.setLevel(level)

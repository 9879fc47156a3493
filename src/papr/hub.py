"""Pretrained weights, without half a minute of retries where no hub can be reached."""

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import nn

_TIMEOUT = 3.0  # seconds


def create(name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    """`timm.create_model`; where there is no network, weights come from the cache alone.

    Raises:
        Exception: whatever timm and the hub's client raise when the weights cannot be had.
    """
    import timm

    model: nn.Module
    if not pretrained:
        model = timm.create_model(name, pretrained=False, **kwargs)
        return model
    with torch.random.fork_rng(devices=[]), _patient_only_online():
        model = timm.create_model(name, pretrained=True, **kwargs)
    return model


def fetch(url: str) -> Path:
    """The file at `url`, downloaded once into torch.hub's folder of checkpoints.

    Raises:
        OSError: it is not there yet and cannot be had.
    """
    path = downloaded(url)
    if not path.is_file():
        check_reachable(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), progress=False)  # whole, or not at all
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
    endpoint = urlsplit(url or os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    port = endpoint.port or (80 if endpoint.scheme == "http" else 443)
    try:
        with socket.create_connection((endpoint.hostname or "", port), timeout=_TIMEOUT):
            return True
    except OSError:
        return False


@contextlib.contextmanager
def _patient_only_online() -> Iterator[None]:
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

"""Pretrained models through timm, without half a minute of retries where no hub can be reached."""

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
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


def reachable() -> bool:
    """Whether the Hugging Face hub answers at all; taken for granted behind a proxy."""
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY")):
        return True
    endpoint = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
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

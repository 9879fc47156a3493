"""The two networks of this example, and their weights on disk: float16 in safetensors."""

from collections.abc import Sequence
from pathlib import Path

import timm
from safetensors.torch import load_file, save_file
from timm.layers import HybridEmbed
from torch import Tensor, nn

from data import CLASSES, SIDE
from papr.files import atomic

WEIGHTS = Path(__file__).parent / "weights"
NAMES = ("host", "proposal")
PATCH = 8  # pixels: 12 x 12 patches
WIDTH = 64  # of the host's tokens
PATCHES = (SIDE // PATCH) ** 2
_COUNTER = "num_batches_tracked"  # of a batch norm, which float16 cannot hold and nobody needs


def _convolutions(widths: Sequence[int], strided: int) -> nn.Sequential:
    """3 x 3 convolutions, each with batch norm and ReLU, the first ones of stride 2."""
    layers: list[nn.Module] = []
    for i, (before, width) in enumerate(zip((3, *widths[:-1]), widths, strict=True)):
        layers.append(nn.Conv2d(before, width, 3, 2 if i < strided else 1, 1, bias=False))
        layers += [nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers)


class ConvNet(nn.Module):
    """The proposal: five blocks of convolution, batch norm and ReLU, 46 000 weights.

    A classifier with global average pooling: nobody tells it where the digit is.
    """

    def __init__(self, widths: tuple[int, ...] = (16, 24, 32, 48, 48)) -> None:
        super().__init__()
        self.num_features = widths[-1]
        self.blocks = _convolutions(widths, strided=3)
        self.head = nn.Linear(widths[-1], CLASSES)

    def forward_features(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) to the feature map (B, 48, H/8, W/8)."""
        return self.blocks(pixels)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) to logits (B, 10)."""
        return self.head(self.forward_features(pixels).mean((2, 3)))


class Stem(nn.Module):
    """What makes the host's tokens: three strided convolutions, each token of 15 x 15 px.

    Learns faster than a plain patch embedding: after 400 steps at 48 px 89 % of the training
    pictures were right with it, 55 % without. Source: Xiao et al., "Early Convolutions Help
    Transformers See Better", NeurIPS 2021 (arXiv 2106.14881).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width
        self.blocks = _convolutions((16, 32, width), strided=3)[:-1]  # no ReLU at the end

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) to (B, width, H/8, W/8)."""
        return self.blocks(pixels)


def build(name: str) -> nn.Module:
    """The host or the proposal, with random weights."""
    if name == "proposal":
        return ConvNet()
    host = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=SIDE,
        patch_size=PATCH,
        embed_dim=WIDTH,
        depth=6,
        num_heads=4,
        mlp_ratio=2,
        # the strongest patch decides: learned faster than their mean
        class_token=False,
        global_pool="max",
        num_classes=CLASSES,
    )
    host.patch_embed = HybridEmbed(Stem(WIDTH), SIDE, patch_size=1, embed_dim=WIDTH, proj=False)
    return host


def save(model: nn.Module, path: Path) -> None:
    """Write a network's weights as float16, atomically."""
    weights = {
        name: tensor.half().contiguous()
        for name, tensor in model.state_dict().items()
        if not name.endswith(_COUNTER)
    }
    with atomic(path) as temporary:
        save_file(weights, temporary)


def load(name: str, folder: Path = WEIGHTS) -> nn.Module:
    """The host or the proposal with the weights of a folder, in eval mode, float32."""
    model = build(name)
    weights = load_file(folder / f"{name}.safetensors")
    own = {key: tensor.float() for key, tensor in weights.items()}
    counters = {k: t for k, t in model.state_dict().items() if k.endswith(_COUNTER)}
    model.load_state_dict(own | counters)
    return model.eval()

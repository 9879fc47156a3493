"""The two networks of this example, and their weights on disk: float16 in safetensors."""

from pathlib import Path

import timm
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from data import CLASSES, SIDE
from papr.files import atomic

WEIGHTS = Path(__file__).parent / "weights"
NAMES = ("host", "proposal")
PATCH = 8  # pixels: 12 x 12 patches
PATCHES = (SIDE // PATCH) ** 2
_COUNTER = "num_batches_tracked"  # of a batch norm, which float16 cannot hold and nobody needs


class ConvNet(nn.Module):
    """The proposal: five blocks of convolution, batch norm and ReLU, 46 000 weights.

    A classifier with global average pooling: nobody tells it where the digit is.
    """

    def __init__(self, widths: tuple[int, ...] = (16, 24, 32, 48, 48)) -> None:
        super().__init__()
        self.num_features = widths[-1]
        layers: list[nn.Module] = []
        for i, width in enumerate(widths):
            before, stride = (3, *widths)[i], 2 if i < 3 else 1
            layers.append(nn.Conv2d(before, width, 3, stride, 1, bias=False))
            layers += [nn.BatchNorm2d(width), nn.ReLU()]
        self.blocks = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1], CLASSES)

    def forward_features(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) to the feature map (B, 48, H/8, W/8)."""
        return self.blocks(pixels)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) to logits (B, 10)."""
        return self.head(self.forward_features(pixels).mean((2, 3)))


def build(name: str) -> nn.Module:
    """The host or the proposal, with random weights."""
    if name == "proposal":
        return ConvNet()
    return timm.create_model(
        "vit_tiny_patch16_224",
        img_size=SIDE,
        patch_size=PATCH,
        embed_dim=64,
        depth=6,
        num_heads=4,
        mlp_ratio=2,
        # the strongest patch decides: learned in minutes, where a class token takes hours
        class_token=False,
        global_pool="max",
        num_classes=CLASSES,
    )


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

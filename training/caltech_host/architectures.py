"""The hosts that can be trained: plain timm networks of one price, and a larger one for a GPU."""

import json
from pathlib import Path
from typing import NamedTuple

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from papr.files import atomic, write_json

#: Statistics of the pictures that hosts take.
MEAN = STD = (0.5, 0.5, 0.5)


class Architecture(NamedTuple):
    """How a host is made.

    Attributes:
        side: of its pictures, in pixels.
        name: timm's name for what it is made from.
        options: what differs from that.
        pool: patches, a side, for each of the teacher's cells.
        steps: of 64 pictures, by default.
    """

    side: int
    name: str
    options: dict[str, object]
    pool: int = 1
    steps: int = 8000


SMALL = {"img_size": 112, "patch_size": 8, "embed_dim": 128, "depth": 7, "num_heads": 2}
ARCHITECTURES = {
    # 14 x 14 patches, a class token and learnt positions, as in ViT-B/16
    "vit": Architecture(112, "vit_tiny_patch16_224", SMALL, pool=2),
    # the same without a class token: the mean of the patches is classified
    "vit_mean": Architecture(
        112,
        "vit_tiny_patch16_224",
        {**SMALL, "class_token": False, "global_pool": "avg"},
        pool=2,
    ),
    # 28 x 28 patches of 4 px, then 14 x 14, then 7 x 7
    "swin": Architecture(
        112,
        "swin_tiny_patch4_window7_224",
        {"img_size": 112, "embed_dim": 64, "depths": (2, 4, 2), "num_heads": (2, 4, 8)},
    ),
    # 28 x 28 patches of 4 px, then 14 x 14, 7 x 7 and 3 x 3
    "convnext": Architecture(
        112, "convnext_tiny", {"dims": (64, 128, 256, 512), "depths": (2, 2, 6, 2)}
    ),
    "vit_small": Architecture(224, "vit_small_patch16_224", {}, pool=2, steps=12000),
}


def host(name: str, classes: int, drop_path: float = 0.0) -> nn.Module:
    """A host with random weights: pixels (B, 3, S, S), (x - 0.5) / 0.5, to logits (B, classes)."""
    chosen = ARCHITECTURES[name]
    options = {"num_classes": classes, "drop_path_rate": drop_path, **chosen.options}
    made: nn.Module = timm.create_model(chosen.name, **options)
    return made


def write(net: nn.Module, name: str, classes: list[str], folder: Path) -> Path:
    """A host as a folder that timm loads: `timm.create_model("local-dir:FOLDER", pretrained=True)`.

    Args:
        net: of `host`.
        name: of `ARCHITECTURES`.
        classes: their names, in the order of the logits.
        folder: where.

    Returns:
        The file of the weights, which are in half precision.
    """
    chosen, old = ARCHITECTURES[name], net.pretrained_cfg
    kept = {key: old[key] for key in ("first_conv", "classifier") if key in old}
    weights = {key: value.half().cpu().contiguous() for key, value in net.state_dict().items()}
    with atomic(folder / "model.safetensors") as new:
        save_file(weights, new, {"format": "pt"})
    write_json(
        folder / "config.json",
        {
            "architecture": chosen.name,
            "num_classes": len(classes),
            "label_names": classes,
            "model_args": chosen.options,
            "pretrained_cfg": {
                **kept,
                "input_size": (3, chosen.side, chosen.side),
                "crop_pct": 1.0,
                "interpolation": "bicubic",
                "mean": MEAN,
                "std": STD,
                "license": "apache-2.0",
            },
        },
    )
    return folder / "model.safetensors"


def read(folder: Path) -> tuple[nn.Module, int]:
    """A host that `write` wrote, in float32, and the side of its pictures in pixels."""
    config = json.loads((folder / "config.json").read_text())
    net: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True)
    return net.eval(), config["pretrained_cfg"]["input_size"][-1]


class Trained(nn.Module):
    """A host as it is trained: with a head that learns the teacher's features, cell by cell.

    Args:
        name: of `ARCHITECTURES`.
        classes: how many.
        components: of the teacher's features.
        drop_path: the rate of stochastic depth in the last block.
    """

    def __init__(self, name: str, classes: int, components: int, drop_path: float) -> None:
        super().__init__()
        self.pool = ARCHITECTURES[name].pool
        self.host = host(name, classes, drop_path)
        self.cells = nn.Linear(self.host.num_features, components)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (B, 3, S, S) to logits (B, classes) and the teacher's features (B, g, g, C)."""
        features = self.host.forward_features(x)
        return self.host.forward_head(features), self.cells(self._cells(features))

    def _cells(self, features: Tensor) -> Tensor:
        """(B, g, g, D) of tokens (B, N, D), feature maps (B, D, g, g) or cells as they are."""
        if features.ndim == 4:
            last = features.shape[-1] == self.cells.in_features
            return features if last else features.movedim(1, 3)
        patches = features[:, getattr(self.host, "num_prefix_tokens", 0) :]
        side = round(patches.shape[1] ** 0.5)
        grid = patches.unflatten(1, (side // self.pool, self.pool, side // self.pool, self.pool))
        return grid.mean((2, 4))


def parameters(net: nn.Module) -> int:
    """How many numbers a network has learnt."""
    return sum(p.numel() for p in net.parameters())


def normalised(pixels: Tensor) -> Tensor:
    """Bytes or pixels in [0, 255] as hosts take them, from -1 to 1."""
    return pixels.to(torch.float32).div_(127.5).sub_(1)

"""A tiny host in a folder that timm loads, with names of its classes and a transform of its own."""

import json
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from torch import nn

NAMES = ("cat", "ant", "bee")  # not sorted
SIZE = 32


def timm_folder(folder: Path, **changes: object) -> nn.Module:
    """Write it there, and return it.

    Args:
        folder: made where it is missing.
        **changes: of config.json.
    """
    options = {"img_size": SIZE, "patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = timm.create_model("vit_tiny_patch16_224", num_classes=len(NAMES), **options).eval()
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.half() for name, value in net.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    net.load_state_dict(weights)  # as rounded
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": len(NAMES),
        "label_names": NAMES,
        "model_args": options,
        "pretrained_cfg": {
            "input_size": (3, SIZE, SIZE),
            "crop_pct": 0.8,
            "interpolation": "bilinear",
            "mean": (0.5, 0.4, 0.3),
            "std": (0.2, 0.3, 0.4),
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }
    (folder / "config.json").write_text(json.dumps(config | changes))
    return net

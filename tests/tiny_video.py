"""transformers' video hosts as tiny random ones: 8 frames of 64 x 64 pixels, 4 x 4 x 4 patches."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import transformers as hf
from torch import Tensor, nn

from conftest import DEVICE
from tiny_hf import LABELS, HFCase

SMALL_VIDEO = {"hidden_size": 48, "num_attention_heads": 3, "patch_size": 16, **LABELS}
FRAMES, TUBELET = 8, 2


@dataclass(frozen=True)
class VideoCase(HFCase):
    """A video host; its pixels are clips (B, T, C, H, W)."""

    patch = 16

    @property
    def rectangles(self) -> bool:
        """Whether this version of transformers builds the host for them."""
        try:
            self.make(depth=1, size=(32, 64))
        except TypeError:
            return False
        return True

    def make(self, depth: int, size: tuple[int, int], attn: str = "sdpa", **changes) -> nn.Module:
        # one number where it is one: the oldest transformers take no pair for a square
        side = size if size[0] != size[1] else size[0]
        common = {"intermediate_size": 96, "num_frames": FRAMES, "image_size": side}
        options = {**SMALL_VIDEO, **common, "num_hidden_layers": depth, **self.options, **changes}
        return self.cls._from_config(self.config(**options), attn_implementation=attn)

    def call(self, model: Callable, clips: Tensor):
        return model(clips)

    def pixels(self, batch: int = 3, height: int = 64, width: int = 64, **kwargs) -> Tensor:
        return torch.randn(batch, FRAMES, 3, height, width, device=DEVICE, **kwargs)

    def grid(self, height: int = 64, width: int = 64) -> tuple[int, ...]:
        return (FRAMES // TUBELET, *super().grid(height, width))


@dataclass(frozen=True)
class JEPACase(VideoCase):
    """V-JEPA 2, whose model holds a predictor that classifiers do not run."""

    def make(self, depth: int, size: tuple[int, int], attn: str = "sdpa", **changes) -> nn.Module:
        options = {
            **SMALL_VIDEO,
            "crop_size": 64,
            "frames_per_clip": FRAMES,
            "num_hidden_layers": depth,
            "num_pooler_layers": 1,
            "pred_hidden_size": 48,
            "pred_num_attention_heads": 3,
            "pred_num_hidden_layers": 1,
            **changes,
        }
        return self.cls._from_config(self.config(**options), attn_implementation=attn)

    def tokens(self, model: nn.Module, clips: Tensor) -> Tensor:
        return model.vjepa2(clips, skip_predictor=True).last_hidden_state


def _mean_then_norm(model: nn.Module, tokens: Tensor) -> Tensor:
    return model.classifier(model.fc_norm(tokens.mean(1)))


def _pooled(model: nn.Module, tokens: Tensor) -> Tensor:
    return model.classifier(model.pooler(tokens))


VIDEO_CASES: dict[str, VideoCase] = {
    "hf_videomae": VideoCase(
        hf.VideoMAEForVideoClassification,
        hf.VideoMAEConfig,
        0,
        _mean_then_norm,
        {"tubelet_size": TUBELET},
        tower="videomae",
    ),
    "hf_vivit": VideoCase(
        hf.VivitForVideoClassification,
        hf.VivitConfig,
        1,
        lambda model, tokens: model.classifier(tokens[:, 0]),
        {"tubelet_size": [TUBELET, 16, 16]},
        tower="vivit",
    ),
    "hf_vjepa2": JEPACase(
        hf.VJEPA2ForVideoClassification, hf.VJEPA2Config, 0, _pooled, tower="vjepa2"
    ),
}

"""torchvision's families as tiny random hosts."""

from dataclasses import dataclass

from torch import Tensor, nn
from torchvision.models.vision_transformer import ConvStemConfig, VisionTransformer

from tiny_case import Case


@dataclass(frozen=True)
class TorchvisionCase(Case):
    """A torchvision VisionTransformer: its arguments."""

    options: dict
    prefix: int = 1
    rectangles: bool = False

    def make(self, depth: int, size: tuple[int, int], **changes: object) -> nn.Module:
        return VisionTransformer(
            **{
                "image_size": size[0],
                "patch_size": 8,
                "num_layers": depth,
                "num_heads": 4,  # even, or attention has no fast path
                "hidden_dim": 48,
                "mlp_dim": 96,
                "num_classes": 10,
                **self.options,
                **changes,
            }
        )

    def same(self, compiled: Tensor, eager: Tensor) -> bool:
        """Up to rounding: compiled code leaves the fast path of nn.MultiheadAttention."""
        return bool((compiled - eager).abs().max() < 1e-5)

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        return list(model.encoder.layers)

    def tokens(self, model: nn.Module, images: Tensor) -> Tensor:
        seen: list[Tensor] = []
        handle = model.encoder.register_forward_hook(lambda *args: seen.append(args[2]))
        model(images)
        handle.remove()
        return seen[0]

    def head(self, model: nn.Module, tokens: Tensor) -> Tensor:
        return model.heads(tokens[:, 0])


STEM = [ConvStemConfig(out_channels=8, kernel_size=3, stride=2) for _ in range(3)]

TORCHVISION_CASES: dict[str, Case] = {
    "torchvision": TorchvisionCase({}),
    "torchvision_stem": TorchvisionCase({"conv_stem_configs": STEM, "representation_size": 24}),
}

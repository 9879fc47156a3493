"""torchvision's VisionTransformer: tokens are cut at `encoder.dropout`, after the position."""

from torch import Tensor, nn

from papr.hosts import Cut, Plan
from papr.hosts.sites import DropCut, Entry
from papr.hosts.state import HostFacts


class ProjectionEntry(Entry):
    """`conv_proj`: one convolution, or a stem of several whose strides multiply to the patch."""

    def _layout(self, pixels: Tensor) -> tuple[tuple[int, ...], tuple[int, int]]:
        assert isinstance(self, nn.Module)
        patch = 1
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                patch *= module.stride[0]
        rows, columns = pixels.shape[-2] // patch, pixels.shape[-1] // patch
        return (rows, columns), (rows * patch, columns * patch)


def plan(model: nn.Module) -> Plan:
    """Cut a VisionTransformer; torchvision knows its input statistics only beside its weights."""
    conv = next(m for m in model.get_submodule("conv_proj").modules() if isinstance(m, nn.Conv2d))
    facts = HostFacts(prefix_tokens=1, class_token=True, channels=conv.in_channels)
    cuts = (Cut("encoder.dropout", DropCut),)
    entry = ("conv_proj", ProjectionEntry)
    return Plan("torchvision VisionTransformer", entry, cuts, facts, _last_tokens, 1)


def _last_tokens(model: nn.Module, pixels: Tensor) -> Tensor:
    """What the encoder answers, (B, 1 + N, C): there is no method for that, so it is overheard."""
    seen: list[Tensor] = []
    handle = model.get_submodule("encoder").register_forward_hook(
        lambda module, args, tokens: seen.append(tokens)
    )
    try:
        model(pixels)
    finally:
        handle.remove()
    return seen[0]

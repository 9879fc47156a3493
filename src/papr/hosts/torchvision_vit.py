"""torchvision's VisionTransformer: tokens are cut at `encoder.dropout`, after the position."""

from torch import Tensor, nn

from papr.hosts import Plan
from papr.hosts.patch_embedding import patch_convolution
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
    conv = patch_convolution(model.get_submodule("conv_proj"))
    facts = HostFacts(prefix_tokens=1, class_token=True, channels=conv.in_channels)
    cuts = (("encoder.dropout", DropCut),)
    return Plan("torchvision VisionTransformer", ("conv_proj", ProjectionEntry), cuts, facts)

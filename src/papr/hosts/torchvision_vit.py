"""torchvision's VisionTransformer: tokens are cut at `encoder.dropout`, after the position."""

from torch import Tensor, nn

from papr.hosts import Cut, Plan
from papr.hosts.grids import first_convolution
from papr.hosts.sites import DropCut, StemEntry
from papr.hosts.state import HostFacts


def plan(model: nn.Module) -> Plan:
    """Cut a VisionTransformer; torchvision knows its input statistics only beside its weights."""
    conv = first_convolution(model.get_submodule("conv_proj"))
    facts = HostFacts(prefix_tokens=1, class_token=True, channels=conv.in_channels)
    cuts = (Cut("encoder.dropout", DropCut),)
    entry = ("conv_proj", StemEntry)
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

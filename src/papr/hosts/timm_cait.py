"""timm's CaiT: patches only until the class-attention blocks, where the class token joins."""

from torch import nn

from papr.hosts import Plan
from papr.hosts.sites import DropCut, TimmEntry
from papr.hosts.state import HostFacts
from papr.hosts.timm_common import check_patch_embed, input_channels, input_statistics


def plan(model: nn.Module) -> Plan:
    """Cut a Cait, where its class token is not there yet: no prefix at the cut."""
    check_patch_embed(model)
    mean, std = input_statistics(model)
    facts = HostFacts(
        prefix_tokens=0, class_token=True, channels=input_channels(model), mean=mean, std=std
    )
    return Plan("timm Cait", ("patch_embed", TimmEntry), (("pos_drop", DropCut),), facts)

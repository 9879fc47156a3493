"""timm's CaiT: patches only until the class-attention blocks, where the class token joins."""

from torch import nn

from papr.hosts import Cut, Plan
from papr.hosts.sites import DropCut, TimmDropEntry
from papr.hosts.timm_common import last_tokens, read_facts


def plan(model: nn.Module) -> Plan:
    """Cut a Cait, where its class token is not there yet: no prefix at the cut."""
    facts = read_facts(model, prefix_tokens=0, class_token=True)
    cuts = (Cut("pos_drop", DropCut),)
    return Plan(
        "timm Cait", ("patch_embed", TimmDropEntry), cuts, facts, last_tokens, feature_prefix=1
    )

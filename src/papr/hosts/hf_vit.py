"""transformers' plain vision transformers, which share one graft.

ViT, DeiT, ViTMSN, I-JEPA, DINOv2 with and without registers, CLIP's and SigLIP's vision towers.
"""

from torch import nn

from papr.hosts import Plan
from papr.hosts.hf_common import EmbeddingsCut, last_hidden, plan_inside, read_facts


def plan(model: nn.Module) -> Plan:
    """Cut a vision tower at its embeddings."""
    if not hasattr(model, "embeddings") and hasattr(model, "vision_model"):
        return plan_inside(model, "vision_model")  # CLIP and SigLIP before their towers were merged
    facts, name = read_facts(model), f"transformers {type(model).__name__}"
    entry = ("embeddings", EmbeddingsCut)
    return Plan(name, entry, (), facts, last_hidden, facts.prefix_tokens)

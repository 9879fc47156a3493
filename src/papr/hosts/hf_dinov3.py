"""transformers' DINOv3 ViT, whose rotary tables are made once for the full grid."""

from typing import Any

from torch import Tensor, nn

from papr.hosts import Cut, Plan
from papr.hosts.hf_common import EmbeddingsCutFirst, last_hidden, read_facts
from papr.hosts.sites import Site


class RotaryCut(Site):
    """The rotary tables of the kept patches only, for each image its own."""

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Cosines and sines (N, D) each, gathered: (B, 1, K, D), to go with (B, heads, K, D)."""
        cos, sin = super().forward(*args, **kwargs)  # type: ignore[misc]
        kept = self._papr.take().indices
        return cos[kept].unsqueeze(1), sin[kept].unsqueeze(1)


def plan(model: nn.Module) -> Plan:
    """Cut a DINOv3ViTModel."""
    cuts = (Cut("rope_embeddings", RotaryCut),)
    facts = read_facts(model)
    entry = ("embeddings", EmbeddingsCutFirst)
    name = "transformers DINOv3ViTModel"
    return Plan(name, entry, cuts, facts, last_hidden, facts.prefix_tokens)

"""transformers' V-JEPA 2, whose layers turn queries and keys by 3-D rotary positions.

Each layer makes them anew from token positions, which it takes as an argument: 0 ... N - 1 unless
told otherwise. Told the indices of the kept patches, it turns them as the dense host does.
"""

from typing import Any

from torch import Tensor, nn

from papr.errors import PrunedModelError
from papr.hosts import Cut, Plan
from papr.hosts.hf_common import EmbeddingsCutFirst, read_facts
from papr.hosts.hf_video import ClipCut
from papr.hosts.pyramid import Block, End
from papr.hosts.sites import Site
from papr.hosts.state import HostFacts


class ClipCutFirst(ClipCut, EmbeddingsCutFirst):
    """Where the layers ask for the selection after the embeddings."""


class PositionedLayer(Block):
    """A layer that is told where its tokens come from."""

    def _run(self, x: Tensor, position_mask: Tensor | None = None, *args: Any, **kw: Any) -> Any:
        return super()._run(x, self._papr.take(again=True).indices, *args, **kw)


class Predictor(Site):
    """The predictor of V-JEPA 2's pretraining, which needs every patch."""

    needed = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse: it would take kept patches for the first ones of the clip."""
        raise PrunedModelError(
            "expected skip_predictor=True for a pruned V-JEPA 2, whose predictor needs every "
            "patch, got False; or papr.unprune(model) first"
        )


def plan(model: nn.Module) -> Plan:
    """Cut a VJEPA2Model."""
    encoder = model.get_submodule("encoder")
    facts: HostFacts = read_facts(encoder)
    layers = range(len(encoder.get_submodule("layer")))  # type: ignore[arg-type]
    cuts = (
        *(Cut(f"encoder.layer.{i}", PositionedLayer, 0) for i in layers),
        Cut("encoder.layernorm", End),
        Cut("predictor", Predictor),
    )
    return Plan(
        "transformers VJEPA2Model", ("encoder.embeddings", ClipCutFirst), cuts, facts, _features
    )


def _features(model: nn.Module, clip: Tensor, **options: Any) -> Tensor:
    """The encoder's tokens, (B, K, C)."""
    found: Tensor = model(clip, **{"skip_predictor": True, **options})[0]
    return found

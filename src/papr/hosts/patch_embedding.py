"""What transformers' and torchvision's patch embeddings say of the patches."""

from torch import nn

from papr.errors import UnsupportedModelError


def patch_convolution(embeddings: nn.Module) -> nn.Conv2d:
    """The convolution that makes a token of each patch. Raises UnsupportedModelError."""
    for module in embeddings.modules():
        if isinstance(module, nn.Conv2d):
            return module
    raise UnsupportedModelError(
        f"expected a convolution that makes a token of each patch in {type(embeddings).__name__}, "
        "got none"
    )

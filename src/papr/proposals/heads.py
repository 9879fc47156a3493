"""What a proposal makes of its feature map: by default the channel mean, here what its classes say.

A classifier's weights turn a feature map into a class activation map (Zhou et al., "Learning Deep
Features for Discriminative Localization", CVPR 2016, arXiv 1512.04150, Sec. 2), one for each class.
Weighted by how probable the network holds each class, they become one map that needs no label, no
gradient and no second pass, and that hedges where the network is unsure.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papr.errors import ProposalError, one_line
from papr.precision import full_precision

_TOLERANCE = 1e-3  # relative to the largest logit, as in folding


class SoftCam(nn.Module):
    """The class activation maps of all classes, each weighted by its probability.

    Args:
        weight: of the linear classifier after global average pooling, (classes, C).
        bias: of it, (classes,).
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().float().clone(), requires_grad=False)
        self.bias = nn.Parameter(bias.detach().float().clone(), requires_grad=False)

    def forward(self, features: Tensor) -> Tensor:
        """Feature map F (B, C, h, w), any floating dtype, to scores (B, h, w), float32.

        In float32 also under autocast: the ranking must not depend on the host's dtype.
        """
        with full_precision(features.device.type):
            features = features.float()
            logits = F.linear(features.mean(dim=(2, 3)), self.weight, self.bias)
            channels = logits.softmax(dim=1) @ self.weight
            return (features * channels[:, :, None, None]).sum(dim=1)


def linear_head(net: nn.Module, name: str, example: Tensor) -> SoftCam:
    """The classifier of a network whose logits are linear in the mean of its feature map.

    That it is so is tried on an example, not read off the modules: there are networks that
    normalise, convolve or activate between the pool and the classifier.

    Args:
        net: with timm's `forward_features` and `get_classifier`, in eval mode.
        name: of the proposal, for messages.
        example: an input that the network takes, (1, 3, h, w).

    Raises:
        ProposalError: it has no such classifier.
    """
    wanted = (
        'expected for score="softcam" a proposal with a linear classifier after global average '
        f"pooling, got {name}"
    )
    find = getattr(net, "get_classifier", None)
    if find is None or not hasattr(net, "forward_features"):
        raise ProposalError(f"{wanted}, which has no get_classifier and forward_features")
    found = find()
    if not isinstance(found, nn.Linear):
        raise ProposalError(f"{wanted}, whose classifier is {_kind(found)}")
    bias = found.weight.new_zeros(len(found.weight)) if found.bias is None else found.bias
    head = SoftCam(found.weight, bias)
    try:
        with torch.no_grad():
            logits, features = net(example), net.forward_features(example)  # type: ignore[operator]
            expected = F.linear(features.mean(dim=(2, 3)), head.weight, head.bias)
            apart = float((logits - expected).abs().max())
    except Exception as error:
        raise ProposalError(f"{wanted}, which failed at it: {one_line(error)}") from error
    if not apart <= _TOLERANCE * max(float(logits.abs().max()), 1e-6):
        raise ProposalError(
            f"{wanted}, whose logits differ by {apart:.2g} from its {_kind(found)} on the mean of "
            "its feature map"
        )
    return head


def _kind(classifier: object) -> str:
    if isinstance(classifier, nn.Identity):
        return "an Identity (made with num_classes=0?)"
    return f"a {type(classifier).__name__}"

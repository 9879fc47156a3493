"""The networks of images that go by a name: glance, those in wheels, timm's."""

import difflib

from torch import nn

from papr.config import DEFAULT_PROPOSAL
from papr.errors import ProposalError
from papr.hub import create, source_of, why_not
from papr.proposals import clip_nets, shipped, wheels
from papr.provenance import ASKED, PRETRAINED, PROPOSAL_FLAG, RANDOM, Weights


def load(name: str, pretrained: bool, classes: bool = False) -> nn.Module:
    """A named network, with its classifier only where `classes`."""
    options = {} if classes else {"num_classes": 0}
    if name == shipped.NAME:
        return shipped.glance(pretrained)
    if name in wheels.WHEELS:
        net = wheels.classifier(name, pretrained)
        if classes:
            return net
        net.reset_classifier(0)  # type: ignore[operator]
        return net
    import timm

    if not timm.is_model(name):
        known = [*clip_nets.NAMES, *timm.list_models()]
        near = difflib.get_close_matches(name.partition(".")[0], known, 3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ProposalError(
            f'expected "{DEFAULT_PROPOSAL}", the name of a timm model, '
            f"{', '.join(clip_nets.NAMES)} or the path of a checkpoint, got {name!r}{hint}"
        )
    if not pretrained:
        return create(name, pretrained=False, **options)
    try:
        return create(name, pretrained=True, **options)
    except Exception as error:  # the hub raises whatever its HTTP stack of the day raises
        raise ProposalError(
            f"cannot download the weights of {name} ({why_not(error)}): "
            f'"{DEFAULT_PROPOSAL}" needs no download; or {PROPOSAL_FLAG}'
        ) from error


def weights_of(name: str, pretrained: bool, net: nn.Module) -> Weights:
    """Where the weights of an image network come from."""
    if not pretrained:
        return Weights(RANDOM, name, why=ASKED)
    if name == shipped.NAME:
        return shipped.weights_of()
    if name in wheels.WHEELS:
        return wheels.weights_of(name)
    return Weights(PRETRAINED, source_of(net, name))


def is_downloaded(name: str) -> bool:
    """Whether the weights of a name come from elsewhere."""
    return name != shipped.NAME and name not in wheels.WHEELS and not clip_nets.is_checkpoint(name)

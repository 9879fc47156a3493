"""The weights of glance, which come with papr; `training/glance` says how they were made."""

from pathlib import Path

from torch import Tensor

from papr.ambient import neutral
from papr.config import DEFAULT_PROPOSAL
from papr.errors import ProposalError, one_line
from papr.proposals.glance import Glance
from papr.proposals.weight_files import read_known
from papr.provenance import PRETRAINED, Weights

NAME = DEFAULT_PROPOSAL
FILE = Path(__file__).with_name("glance.safetensors")
SHA256 = "a3e22e5c380b535dc4b27b95d09f5e6ddaae0948d9a90dbb3dd993fc52cd6f4c"


def weights_of() -> Weights:
    """Where they come from; the file is not read."""
    return Weights(PRETRAINED, "papr", SHA256)


def glance(pretrained: bool = True) -> Glance:
    """The network in float32: with the weights that come with papr, or with random ones.

    Raises:
        ProposalError: the file of the weights is missing or damaged.
    """
    with neutral(restores=pretrained):
        net = load(FILE, SHA256) if pretrained else Glance()
    return net.eval()


def load(path: Path, sha256: str) -> Glance:
    """The network out of a file of safetensors; how wide and deep it is, its shapes say.

    Raises:
        ProposalError: the file is missing, or is not the one with that SHA-256.
    """
    from safetensors.torch import load as unpack

    weights = unpack(read_known(path, sha256, "papr-torch"))
    try:
        net = Glance(*_sizes(weights))
        net.load_state_dict(weights)  # which are halves
    except (RuntimeError, ValueError) as error:
        raise ProposalError(
            f"expected the weights of a Glance in {path}: {one_line(error)}"
        ) from None
    return net


def _sizes(weights: dict[str, Tensor]) -> tuple[list[int], list[int]]:
    """The channels of each stage and its 3 x 3 convolutions; another kernel begins a stage."""
    shapes = [weights.get(f"convs.{number}.weight") for number in range(len(weights))]
    convs = [weight.shape for weight in shapes if weight is not None]
    begins = [number for number, shape in enumerate(convs) if number == 0 or shape[-1] != 3]
    ends = [*begins[1:], len(convs)]
    depths = [end - begin - 1 for begin, end in zip(begins, ends, strict=True)]
    return [convs[begin][0] for begin in begins], depths

"""The catalogue of clip networks: 3-D ConvNets that look at a whole clip first.

| name | network | weights (Kinetics-400) | code's licence |
|---|---|---|---|
| x3d_s, x3d_m | X3D | PyTorchVideo's X3D_S.pyth, X3D_M.pyth | Apache-2.0 |
| slowonly_r50 | SlowOnly R50 8x8 | PyTorchVideo's SLOW_8x8_R50.pyth | Apache-2.0 |
| slowonly_r101 | SlowOnly R101 8x8 | mmaction2's slowonly_r101_8xb16-8x8x1 | Apache-2.0 |
| s3d, mc3_18, r2plus1d_18 | torchvision's | torchvision's | BSD-3-Clause |

The weights are published beside that code; a licence of their own is not known here. They were
trained on Kinetics, whose videos belong to those who uploaded them.
"""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from papr import hub
from papr.ambient import neutral
from papr.config import DEFAULT_PROPOSAL, IMAGENET_MEAN, IMAGENET_STD, Triple
from papr.errors import ProposalError
from papr.proposals import checkpoints, slowonly, x3d
from papr.proposals.weight_files import SUFFIXES
from papr.provenance import ASKED, CHECKPOINT, PRETRAINED, PROPOSAL_FLAG, RANDOM, Weights

_PYTORCHVIDEO = "https://dl.fbaipublicfiles.com/pytorchvideo/model_zoo/kinetics"
_MMACTION2 = "https://download.openmmlab.com/mmaction/v1.0/recognition/slowonly"
_R101 = "slowonly_r101_8xb16-8x8x1-196e_kinetics400-rgb"
_URLS = {
    "x3d_s": f"{_PYTORCHVIDEO}/X3D_S.pyth",
    "x3d_m": f"{_PYTORCHVIDEO}/X3D_M.pyth",
    "slowonly_r50": f"{_PYTORCHVIDEO}/SLOW_8x8_R50.pyth",
    "slowonly_r101": f"{_MMACTION2}/{_R101}/{_R101}_20220901-e6281431.pth",
}
#: torchvision's, and the modules that its forward runs before the pooling.
_TORCHVISION = {
    "s3d": ("features",),
    "mc3_18": ("stem", "layer1", "layer2", "layer3", "layer4"),
    "r2plus1d_18": ("stem", "layer1", "layer2", "layer3", "layer4"),
}
NAMES: tuple[str, ...] = (*_URLS, *_TORCHVISION)

_SIDES = {"s3d": 224, "mc3_18": 112, "r2plus1d_18": 112, "slowonly_r50": 224, "slowonly_r101": 224}
_FACEBOOK: tuple[Triple, Triple] = ((0.45, 0.45, 0.45), (0.225, 0.225, 0.225))


@dataclass(frozen=True)
class ClipNet:
    """A clip network and what it wants to be shown.

    Attributes:
        name: one of `NAMES`; for a checkpoint file, that of the network it holds ("x3d_s" for
            X3D-M too, which is the same network).
        net: in eval mode; `forward_features` takes (B, 3, T, H, W) to (B, C, t, h, w), and
            `forward` to logits (B, classes).
        mean: of pixels in [0, 1], as these weights were trained.
        std: likewise.
        side: the shorter side, in pixels, that it looks at by default.
        every_frame: False where one frame of each tubelet is enough (t = T); True where the
            network strides in time and is given all frames (t is about T / 8).
        weights: where they come from.
        least_frames: the shortest clip it takes.
    """

    name: str
    net: nn.Module
    mean: Triple
    std: Triple
    side: int
    every_frame: bool
    weights: Weights
    least_frames: int = 1


class TorchvisionNet(nn.Module):
    """One of torchvision's video networks, with the feature map before its pooling."""

    def __init__(self, net: nn.Module, parts: tuple[str, ...]) -> None:
        super().__init__()
        self.net = net
        self.parts = parts

    def forward_features(self, clip: Tensor) -> Tensor:
        """Clip (B, 3, T, H, W) to the feature map (B, C, t, h, w)."""
        for part in self.parts:
            clip = self.net.get_submodule(part)(clip)
        return clip

    def forward(self, clip: Tensor) -> Tensor:
        """Clip (B, 3, T, H, W) to logits (B, 400)."""
        logits: Tensor = self.net(clip)
        return logits


def knows(source: str) -> bool:
    """Whether `source` is a name in `NAMES`, or the path of a checkpoint."""
    return source in NAMES or is_checkpoint(source)


def is_checkpoint(source: str) -> bool:
    """Whether `source` is the path of a checkpoint.

    That is told by its suffix, or by its folder where there is a file of that name in it.
    """
    path = Path(source)
    looks_like_one = path.suffix.lower() in SUFFIXES or (path.name != source and path.is_file())
    return looks_like_one and source not in NAMES


def address(name: str) -> str:
    """Where the weights of a name in `NAMES` are downloaded from."""
    if name in _TORCHVISION:
        from torchvision.models import get_model_weights

        return str(get_model_weights(name).DEFAULT.url)
    return _URLS[name]


def load(source: str, pretrained: bool = True) -> ClipNet:
    """A clip network by name, or out of a checkpoint of PyTorchVideo's or mmaction2's.

    Args:
        source: one of `NAMES`, or a path. A name's weights are downloaded once, into torch.hub's
            folder; of a file, everything is read off what it holds.
        pretrained: load weights; False gives random ones, drawn from PyTorch's global generator.
            Names only: what is in a file is loaded.

    Raises:
        ProposalError: neither a name nor a file, weights out of reach, or a file that does not
            hold an X3D or a SlowOnly.
    """
    if source not in NAMES and not knows(source):
        raise ProposalError(
            f"expected one of {', '.join(NAMES)} or the path of a checkpoint, got {source!r}"
        )
    path = None
    if source in NAMES and pretrained:
        try:
            path = hub.fetch(address(source))  # before: others wait for the end of the spell
        except Exception as error:  # whatever the HTTP stack of the day raises
            raise _out_of_reach(source, address(source), error) from error
    with neutral(restores=pretrained):
        if source in _TORCHVISION:
            return _torchvision(source, pretrained)
        if source not in NAMES:
            held = checkpoints.load(Path(source))
            return _clip_net(held.name, held, Weights(CHECKPOINT, source, held.sha256))
        if path is None:
            made = checkpoints.Checkpoint(source, "", _random(source))
            return _clip_net(source, made, Weights(RANDOM, source, why=ASKED))
        held = checkpoints.load(path)
        return _clip_net(source, held, Weights(PRETRAINED, _URLS[source], held.sha256))


def _clip_net(name: str, held: checkpoints.Checkpoint, weights: Weights) -> ClipNet:
    # mmaction2 ported X3D from its authors, and trained SlowOnly itself, on ImageNet's statistics
    own = held.layout == "mmaction2" and held.name.startswith("slowonly")
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if own else _FACEBOOK
    side = _SIDES.get(name, 160)
    return ClipNet(name, held.net, mean, std, side, every_frame=False, weights=weights)


def _random(name: str) -> nn.Module:
    if name.startswith("x3d"):
        return x3d.X3D(first_norm=False).eval()  # as in the checkpoint that goes by this name
    return slowonly.SlowOnly(depths=slowonly.DEPTHS[int(name.removeprefix("slowonly_r"))]).eval()


def _torchvision(name: str, pretrained: bool) -> ClipNet:
    from torchvision.models import get_model, get_model_weights

    weights = get_model_weights(name).DEFAULT
    try:
        net = get_model(name, weights=weights if pretrained else None, progress=False)
    except Exception as error:
        raise _out_of_reach(name, weights.url, error) from error
    seen = weights.transforms()
    mean, std = ((float(x), float(y), float(z)) for x, y, z in (seen.mean, seen.std))
    adapter = TorchvisionNet(net, _TORCHVISION[name]).eval()
    own = Weights(PRETRAINED, weights.url) if pretrained else Weights(RANDOM, name, why=ASKED)
    striding, least = name != "mc3_18", 5 if name == "s3d" else 1
    return ClipNet(name, adapter, mean, std, _SIDES[name], striding, own, least)


def _out_of_reach(name: str, url: str, error: Exception) -> ProposalError:
    instead = f"put that file into {hub.downloaded(url).parent}"
    if name in _URLS:
        instead = "download that file elsewhere and give its path instead of the name"
    return ProposalError(
        f"cannot download the weights of {name} from {url} ({hub.why_not(error, url)}): {instead}; "
        f'"{DEFAULT_PROPOSAL}" needs no download; or {PROPOSAL_FLAG}'
    )

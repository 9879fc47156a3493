"""The proposal: a lightweight pretrained ConvNet that looks at the image or the clip first."""

import copy
import functools
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from papr.ambient import neutral
from papr.config import (
    DEFAULT_PROPOSAL,
    ProposalSize,
    Triple,
    check_proposal_size,
    check_statistics,
)
from papr.errors import ConfigError, ProposalError, one_line
from papr.proposals import by_name, clip_nets, wheels
from papr.proposals.clips import REFERENCE_FRAMES, ClipScorer, FramesScorer
from papr.proposals.folding import cheapen
from papr.proposals.glance import MEAN, STD, Glance, folded
from papr.proposals.heads import SoftCam, linear_head
from papr.proposals.scorers import CallableScorer, GlanceScorer, NetScorer, Scorer
from papr.provenance import GIVEN, digest_of
from papr.significance import channel_mean

#: Shorter side, in pixels, at which timm's networks look unless told otherwise. Measured:
#: benchmarks/results/masked_accuracy.json.
DEFAULT_SIZE = 160

_LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}

#: (scale, shift) of each channel.
Affine = tuple[Triple, Triple]
Source = str | os.PathLike[str] | nn.Module | Callable[[Tensor], Tensor]


class Proposal:
    """Who looks first, ready to be shared by several hosts.

    Networks are copied, frozen, their branches fused and their batch norms folded; the copy is
    kept in float32 on the CPU, and each device and dtype that a host lives on gets one replica.

    Args:
        source: "glance", which comes with papr; "efficientnet_lite0" (extra: lite) and its larger
            sisters, which need no network access either; the name of any timm ConvNet, or of a
            network that looks at clips (`papr.proposals.clip_nets.NAMES`), or the
            path of a checkpoint of one; an `nn.Module` whose `forward_features` (or `forward`)
            returns a feature map (B, C, h, w), or (B, C, t, h, w) of a clip (B, 3, T, H, W), or a
            callable `pixels (B, 3, H, W) -> scores (B, h, w)`, for video hosts
            `(B, 3, T, H, W) -> (B, t, h, w)`, which gets the host's pixels as they are.
        pretrained: load weights; False gives random ones, for tests and for counting. Names only.
        size: resolution to run at: an int for the shorter side in pixels, (height, width), or
            "input"; of networks that look at clips also (frames, height, width). None: glance takes
            images up to a shorter side of 256 as they are and shrinks others to 224; other named
            networks shrink images to 160 (those for clips to their own, and to one frame of each
            tubelet); modules take pixels as they come.
        mean: input mean of the network for pixels in [0, 1]; read off timm networks.
        std: input standard deviation, likewise. Unknown for a module: it gets the host's pixels.

    Raises:
        ProposalError: unknown name, weights out of reach or damaged, no usable feature map.
        ConfigError: an option out of range.
    """

    def __init__(
        self,
        source: Source = DEFAULT_PROPOSAL,
        pretrained: bool = True,
        size: ProposalSize = None,
        mean: Triple | None = None,
        std: Triple | None = None,
    ) -> None:
        self.size = check_proposal_size(size, "size")
        self.mean, self.std = check_statistics(mean, std)
        self.function: Callable[[Tensor], Tensor] | None = None
        self.net: nn.Module | None = None
        self.clips = False  # whether the network looks at clips
        self._side, self._every_frame, self._least_frames = DEFAULT_SIZE, True, 1
        self._call = "forward"
        self._pretrained = pretrained
        self.weights = GIVEN  # where they come from; see `papr.provenance`
        self._head: SoftCam | None = None  # of a named network, loaded when a scorer wants it
        self._replicas: dict[tuple[torch.device, torch.dtype, Affine | None], nn.Module] = {}
        self._lock = threading.Lock()
        source = os.fspath(source) if isinstance(source, os.PathLike) else source
        self.name = source if isinstance(source, str) else type(source).__name__
        self.named = isinstance(source, str)
        if isinstance(source, str | nn.Module):
            with neutral(restores=pretrained):
                net = self._named(source, pretrained) if isinstance(source, str) else source
                self._take_net(net)
        elif callable(source):
            self.function = source
            self.name = getattr(source, "__name__", self.name)
        else:
            raise ProposalError(
                f"expected a proposal name, an nn.Module or a callable, got {type(source).__name__}"
            )

    def _named(self, source: str, pretrained: bool) -> nn.Module:
        """The network behind a name, and what is known of it."""
        if not clip_nets.knows(source):
            net = by_name.load(source, pretrained)
            self.weights = by_name.weights_of(source, pretrained, net)
            return net
        found = clip_nets.load(source, pretrained)
        self.clips, self._side = True, found.side
        self._every_frame, self._least_frames = found.every_frame, found.least_frames
        self.name, self.weights = found.name, found.weights
        if self.mean is None:
            self.mean, self.std = found.mean, found.std
        return found.net

    def _take_net(self, net: nn.Module) -> None:
        if isinstance(net, Glance):  # nothing to fold, nothing to find out
            if self.mean is None:
                self.mean, self.std = MEAN, STD
            self.net = copy.deepcopy(net).cpu().float().eval().requires_grad_(False)
            return
        config = getattr(net, "pretrained_cfg", None) or {}
        if self.mean is None and "mean" in config and "std" in config:
            self.mean, self.std = check_statistics(tuple(config["mean"]), tuple(config["std"]))
        self._call = "forward_features" if hasattr(net, "forward_features") else "forward"
        net = copy.deepcopy(net).cpu().float()
        errors = []
        for example in self._examples():
            try:
                self.net = cheapen(net, self._call, example)
                features = getattr(self.net, self._call)(example)
                self.clips = example.ndim == 5
                break
            except Exception as error:
                errors.append((example, error))
        else:
            example, first = errors[0]
            raise ProposalError(
                f"expected the proposal {self.name} to take {_what(example)} "
                f"{tuple(example.shape)}, "
                f"it failed: {one_line(first)}"
            ) from first
        _check_map(features, self.name, getattr(net, "num_features", None), example)

    def _examples(self) -> list[Tensor]:
        """What to try the network on: images, clips, or where nothing is known one then other."""
        if self.clips:  # known to work: half its side will do
            return [_example_clip(self.size, self._side // 2)]
        if self.named:
            return _example_images(self.size)
        return [*_example_images(self.size), _example_clip(self.size, self._side)]

    def scorer(
        self,
        device: torch.device,
        dtype: torch.dtype,
        size: ProposalSize = None,
        host_mean: Triple | None = None,
        host_std: Triple | None = None,
        reference: bool = False,
        tubelet: int = 0,
        score: str = "significance",
    ) -> Scorer:
        """The proposal as a module pixels -> scores on one device, in one dtype.

        Args:
            device: where the host's pixels are.
            dtype: the host's dtype, which the network takes on.
            size: overrides the proposal's own `size`.
            host_mean: what the pixels were normalised with; None for the proposal's own.
            host_std: likewise.
            reference: pixels go in as they are, not renormalised; images not resized by default,
                clips to (8, side, side).
            tubelet: how many frames a patch of the host spans; 0 for a host of images.
            score: "softcam" for the probability-weighted class activation map of a network with a
                linear classifier after global average pooling; others mean the channel mean, of
                glance its own map.

        Raises:
            ProposalError: a network for clips and a host of images; softcam and no such classifier.
            ConfigError: a size (frames, height, width) for a network that looks at images.
        """
        softcam = score == "softcam"
        if softcam:
            self.check_softcam(tubelet)
        if self.function is not None:
            return CallableScorer(self.function)
        chosen = size if size is not None else self.size
        self._check_fits(chosen, tubelet)
        affine = None if reference else self._affine(host_mean, host_std)
        with neutral():  # a host pruned for inference may be trained later
            if self.clips:
                return self._of_clips(device, dtype, chosen, affine, reference, tubelet).eval()
            found = self._of_images(device, dtype, chosen, affine, reference, softcam)
            return (FramesScorer(tubelet, found) if tubelet else found).eval()

    def _of_images(
        self,
        device: torch.device,
        dtype: torch.dtype,
        size: ProposalSize,
        affine: Affine | None,
        reference: bool,
        softcam: bool,
    ) -> NetScorer | GlanceScorer:
        """Who looks at images; arguments as of `scorer`."""
        usual = size is None and not reference
        if isinstance(self.net, Glance):
            net = self._replica(device, dtype, affine)
            assert isinstance(net, Glance)
            return GlanceScorer(net, size, usual)
        usual = usual and self.named
        run_at = self._side if usual else size
        head = copy.deepcopy(self._classifier()).to(device) if softcam else channel_mean
        return NetScorer(self._replica(device, dtype), self._call, run_at, usual, affine, head)

    def _of_clips(
        self,
        device: torch.device,
        dtype: torch.dtype,
        size: ProposalSize,
        affine: Affine | None,
        reference: bool,
        tubelet: int,
    ) -> ClipScorer:
        """Who looks at clips; arguments as of `scorer`."""
        usual = size is None and self.named
        if usual and reference:
            size = (REFERENCE_FRAMES, self._side, self._side)
        shrinks = usual and not reference
        run_at = self._side if shrinks else size
        step, least = 1 if self._every_frame else tubelet, self._least_frames
        net = self._replica(device, dtype)
        return ClipScorer(step, least, net, self._call, run_at, shrinks, affine)

    def check_softcam(self, tubelet: int = 0) -> None:
        """Refuse what can have no probability-weighted map. Loads nothing.

        Raises:
            ConfigError: the host takes clips, the proposal is a callable, looks at clips, or is
                glance, which has no classifier.
        """
        if tubelet or self.clips or self.function is not None:
            what = "which looks at clips" if self.clips else "a callable"
            raise ConfigError(
                'expected for score="softcam" a host of images and a proposal network with a '
                f"classifier, got {'a host of clips' if tubelet else f'{self.name}, {what}'}"
            )
        if isinstance(self.net, Glance):
            raise ConfigError(
                'expected for score="softcam" a proposal with a classifier, such as '
                f"{wheels.LITE0} ({wheels.install(wheels.LITE0)}) or any timm ConvNet, got "
                f"{self.name}, which has none: its map is its score"
            )

    def _classifier(self) -> SoftCam:
        """The network's classifier; of a named one, which was loaded without, loaded now."""
        with neutral(restores=self._pretrained), self._lock:  # in the order `scorer` takes them
            if self._head is None:
                assert self.net is not None
                net = self.net
                if self.named:
                    net = by_name.load(self.name, self._pretrained, classes=True).eval()
                self._head = linear_head(net, self.name, _example_images(self.size)[-1])
            return self._head

    def _check_fits(self, size: ProposalSize, tubelet: int) -> None:
        if self.clips and not tubelet:
            raise ProposalError(
                f"expected a proposal that looks at images, as the host does, got {self.name}, "
                "which looks at clips"
            )
        if not self.clips and isinstance(size, tuple) and len(size) == 3:
            raise ConfigError(
                f"expected a size (height, width) for {self.name}, which looks at images, "
                f"got {size}"
            )

    def _affine(self, mean: Triple | None, std: Triple | None) -> Affine | None:
        """(scale, shift) that undo the host's normalisation and apply the proposal's."""
        if mean is None or std is None or self.mean is None or self.std is None:
            return None
        if (mean, std) == (self.mean, self.std):
            return None
        scale = [host / own for host, own in zip(std, self.std, strict=True)]
        shift = [(m - o) / s for m, o, s in zip(mean, self.mean, self.std, strict=True)]
        return (scale[0], scale[1], scale[2]), (shift[0], shift[1], shift[2])

    def _replica(
        self, device: torch.device, dtype: torch.dtype, affine: Affine | None = None
    ) -> nn.Module:
        """The network on a device, in a dtype; glance also with an affine folded in."""
        assert self.net is not None
        key = (device, dtype, affine)
        with self._lock:  # DataParallel asks from several threads at once
            if key not in self._replicas:
                net = copy.deepcopy(self.net)
                if affine is not None:
                    assert isinstance(net, Glance)
                    net = folded(net, *affine)
                net = net.to(device=device, dtype=dtype)
                for weight in (p for p in net.parameters() if p.ndim in _LAYOUTS):
                    weight.data = weight.data.contiguous(memory_format=_LAYOUTS[weight.ndim])
                self._replicas[key] = net
            return self._replicas[key]

    @property
    def has_zero(self) -> bool:
        """Whether a score of 0 says that nothing was found; see `papr.budgets`."""
        return not isinstance(self.net, Glance)

    def __repr__(self) -> str:
        return f"Proposal({self.name!r}, size={self.size!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> "Proposal":
        return self  # frozen: copies of a host share it

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k not in ("_replicas", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _replicas={}, _lock=threading.Lock())


def as_proposal(source: object, random_weights: bool = False) -> Proposal:
    """A Proposal from what a user may give: one made beforehand, a name, a module, a callable.

    Args:
        source: that.
        random_weights: for a name whose weights would be downloaded, random ones instead, the same
            every time: a run that is taken up again needs the same proposal.
    """
    if isinstance(source, Proposal):
        return source
    if random_weights and isinstance(source, str) and by_name.is_downloaded(source):
        with neutral(seed=0):
            return Proposal(source, pretrained=False)
    if isinstance(source, str | os.PathLike):
        name = os.fspath(source)
        return _named(name, _content(name))
    return Proposal(source)  # type: ignore[arg-type]  # the constructor refuses what it cannot take


@functools.lru_cache(maxsize=4)
def _named(name: str, content: str) -> Proposal:
    """A named one, made once; of a file once for each content."""
    made = Proposal(name)
    if content and made.weights.sha256 != content:
        raise ProposalError(f"expected {name} to stay as it is while it is read, it changed: again")
    return made


def _content(name: str) -> str:
    """What tells a checkpoint's file from what lay there before: its digest; empty of a name."""
    if not clip_nets.is_checkpoint(name) or not Path(name).is_file():
        return ""
    return digest_of(Path(name))


def _example_images(size: ProposalSize) -> list[Tensor]:
    """Images to try a network on: of the size it is to run at, or of the usual ones."""
    sizes = [(DEFAULT_SIZE, DEFAULT_SIZE), (224, 224)]
    if isinstance(size, tuple):
        sizes = [(size[-2], size[-1])]
    elif isinstance(size, int):
        sizes = [(size, size)]
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(1, 3, *shape, generator=generator) for shape in sizes]


def _example_clip(size: ProposalSize, side: int) -> Tensor:
    """A short clip to try a network on, of the size it is to run at, or of `side` pixels."""
    if isinstance(size, tuple):
        shape = size if len(size) == 3 else (REFERENCE_FRAMES, *size)
    else:
        side = size if isinstance(size, int) else side
        shape = (REFERENCE_FRAMES, side, side)
    return torch.rand(1, 3, *shape, generator=torch.Generator().manual_seed(0))


def _what(example: Tensor) -> str:
    return "an image" if example.ndim == 4 else "a clip"


def _check_map(features: object, name: str, channels: int | None, example: Tensor) -> None:
    """Refuse what is no feature map (B, C, *map), and maps with channels last."""
    try:
        channel_mean(features)  # type: ignore[arg-type]
    except ProposalError as error:
        raise ProposalError(f"the proposal {name} returns no feature map: {error}") from None
    assert isinstance(features, Tensor)
    if features.ndim != example.ndim:
        axes = "h, w" if example.ndim == 4 else "t, h, w"
        raise ProposalError(
            f"expected the proposal {name} to return (B, C, {axes}), got {tuple(features.shape)}"
        )
    if channels in features.shape[2:] and features.shape[1] != channels:
        raise ProposalError(
            f"expected the proposal {name} to return (B, {channels}, h, w), got "
            f"{tuple(features.shape)}: it keeps channels last, as no ConvNet of timm does"
        )

"""Class activation maps to hold PaPr's mean map against: one call each, on one classifier.

`papr` and `softcam` are the proposal's own, as in use: the network without its classifier (softcam
adds it as one product), batch norms folded. The others come from the kept `grad-cam` library
(jacobgil/pytorch-grad-cam, extra `cam`) at its defaults, each judged class being the network's own
top-1, and run on the classifier with its batch norms folded too, which makes them about three
times as fast on a CPU as the network as it is loaded. Their maps are taken at the resolution of the
feature map, where the library would enlarge them to that of the picture: so all methods reach the
patch grid by the same resize. The library clips its maps at zero and scales each to 0..1.

Sources: Grad-CAM, Selvaraju et al. 2017 (arXiv 1610.02391); Grad-CAM++, Chattopadhay et al. 2018
(1710.11063); LayerCAM, Jiang et al., TIP 2021; Eigen-CAM, Muhammad and Yeasin 2020 (2008.00299);
Score-CAM, Wang et al. 2020 (1910.01279); PaPr, Mahmud et al. 2024 (2403.16020); softcam, see
`papr.proposals.heads`.
"""

import contextlib
import copy
import functools
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from papr.ambient import neutral
from papr.errors import ConfigError, PaprError, ProposalError
from papr.proposals import Proposal
from papr.proposals.folding import cheapen
from papr.proposals.scorers import floating_weight


class _Kind(NamedTuple):
    """What is known of a method: the library's class, where it is the library's, and traits."""

    library: str | None
    batches: bool
    needs_gradients: bool
    what: str


_KINDS = {
    "papr": _Kind(None, True, False, "network without classifier, channel mean"),
    "gradcam": _Kind("GradCAM", True, True, "network, backward, map"),
    "gradcam++": _Kind("GradCAMPlusPlus", True, True, "network, backward, map"),
    "layercam": _Kind("LayerCAM", True, True, "network, backward, map"),
    "eigencam": _Kind("EigenCAM", False, False, "network, an SVD for each image, map"),
    "scorecam": _Kind("ScoreCAM", False, False, "network once and again for each channel, map"),
    "softcam": _Kind(None, True, False, "network, class-weighted channel sum"),
}
METHODS = tuple(_KINDS)


@dataclass(frozen=True)
class Cam:
    """One method on one classifier: pixels (B, 3, H, W) normalised for it, to maps (B, h, w).

    Attributes:
        name: one of `METHODS`.
        batches: whether everything that costs time is done for the batch at once. Eigen-CAM
            decomposes each image's feature map by itself, Score-CAM runs the network image by
            image; `papr compare-cam` also measures what a batch saves.
        needs_gradients: whether it runs backward through the network.
        what: what a call does, in words.
        run: the call itself.
    """

    name: str
    batches: bool
    needs_gradients: bool
    what: str
    run: Callable[[Tensor], Tensor]

    def __call__(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) to maps (B, h, w), float32, on the pixels' device."""
        return self.run(pixels)


def cam(name: str, net: nn.Module, only_last: bool = False, fold: bool = True) -> Cam:
    """A method by name.

    Args:
        name: one of `METHODS`.
        net: a classifier with timm's `forward_features` and, for softcam, `get_classifier`; on its
            device, in eval mode; left as it is (what runs is a copy).
        only_last: of methods with gradients, stop them at the last feature map (the weights below
            ask for none), which the library leaves to its user. The maps are the same.
        fold: of the library's methods, run them on a network with its batch norms folded; False
            for the network as it is.

    Raises:
        ConfigError: unknown name.
        ProposalError: softcam, and the network has no linear classifier.
        PaprError: the library is not installed.
    """
    if name not in _KINDS:
        raise ConfigError(f"expected a method among {', '.join(METHODS)}, got {name!r}")
    kind = _KINDS[name]
    run: Callable[[Tensor], Tensor]
    with neutral():  # weights made in inference mode could not be used with gradients
        if kind.library is None:
            score = "softcam" if name == "softcam" else "significance"
            weight = floating_weight(net)
            assert weight is not None
            run = Proposal(net, size="input").scorer(weight.device, weight.dtype, score=score)
        else:
            own = folded(net) if fold else copy.deepcopy(net)
            run = _from_library(_library_class(kind.library), own, kind, only_last)
    return Cam(name, kind.batches, kind.needs_gradients, kind.what, run)


def folded(net: nn.Module) -> nn.Module:
    """A cheaper copy of a classifier, on its device: frozen, batch norms folded, channels last."""
    weight = floating_weight(net)
    assert weight is not None
    with neutral():
        example = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
        cheap = cheapen(copy.deepcopy(net).cpu().float(), "forward", example)
    return cheap.to(memory_format=torch.channels_last).to(weight.device)


def _library_class(name: str) -> Any:
    try:
        import pytorch_grad_cam
    except ImportError as error:
        raise PaprError(
            f"expected the package grad-cam for {name}, found none: pip install 'papr-torch[cam]'"
        ) from error
    return _at_map_size(getattr(pytorch_grad_cam, name))


@functools.cache
def _at_map_size(base: Any) -> Any:
    """The library's class, its maps left at the feature map's own resolution."""

    def size(self: Any, input_tensor: Tensor) -> tuple[int, int]:
        height, width = self.activations_and_grads.activations[0].shape[-2:]
        return width, height

    return type(f"{base.__name__}AtMapSize", (base,), {"get_target_width_height": size})


def _from_library(
    maker: Any, own: nn.Module, kind: _Kind, only_last: bool
) -> Callable[[Tensor], Tensor]:
    last = _last_module(own)
    if kind.needs_gradients:
        _ask_for_gradients(own, last, only_last)
    method = maker(model=own, target_layers=[last])

    def run(pixels: Tensor) -> Tensor:
        # inference tensors cannot be saved for backward, and hooks see no gradient without grad
        with torch.inference_mode(False), torch.set_grad_enabled(kind.needs_gradients), _silent():
            x = pixels.detach().clone(memory_format=torch.channels_last)
            # Score-CAM would hold an image for every channel of every image of the batch
            parts = x.split(1) if kind.library == "ScoreCAM" else [x]
            maps = [torch.from_numpy(method(part, targets=None)) for part in parts]
            method.outputs = None  # they hold the graph
            return torch.cat(maps).to(pixels.device)

    return run


def _ask_for_gradients(net: nn.Module, last: nn.Module, only_last: bool) -> None:
    """As a network comes: every weight asks; or only the feature map that `last` returns."""
    net.requires_grad_(not only_last)
    if only_last:

        def ask(module: nn.Module, args: object, output: Tensor) -> Tensor:
            return output.detach().requires_grad_(torch.is_grad_enabled())

        last.register_forward_hook(ask)  # before the library's own, which then sees this tensor


def _last_module(net: nn.Module) -> nn.Module:
    """The leaf whose output is the last feature map: where CAMs are usually taken."""
    weight = floating_weight(net)
    assert weight is not None
    example = weight.new_zeros(1, 3, 224, 224)
    outputs: list[tuple[nn.Module, object]] = []
    leaves = [module for module in net.modules() if not list(module.children())]
    handles = [m.register_forward_hook(lambda m, x, y: outputs.append((m, y))) for m in leaves]
    try:
        with torch.no_grad():
            features = net.forward_features(example)  # type: ignore[operator]
    except AttributeError:
        raise ProposalError(
            f"expected a classifier with forward_features, got a {type(net).__name__}"
        ) from None
    finally:
        for handle in handles:
            handle.remove()
    found = [module for module, output in outputs if output is features]
    if not found:
        raise ProposalError(
            f"expected the last feature map of {type(net).__name__} to be a module's output, "
            "found none that returns it"
        )
    return found[-1]


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Score-CAM draws a bar for each image; this hides it, and only it."""
    from pytorch_grad_cam import score_cam

    before = score_cam.tqdm
    score_cam.tqdm = types.SimpleNamespace(tqdm=lambda items: items)
    try:
        yield
    finally:
        score_cam.tqdm = before

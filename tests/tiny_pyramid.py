"""Swin and ConvNeXt of every library as tiny random hosts, and the dense answer each must give.

The dense host runs on its whole grid; what pruning leaves out is taken away again by hooks on the
host's own modules. Nothing is gathered.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from timm.models.convnext import ConvNeXt
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import Tensor, nn
from torchvision.models import convnext as tv_convnext
from torchvision.models import swin_transformer as tv_swin
from transformers.models.dinov3_convnext import modeling_dinov3_convnext
from transformers.models.swin import modeling_swin

import papr
from tiny_case import Case

SWIN = {
    "img_size": 64,
    "patch_size": 4,
    "embed_dim": 24,
    "num_heads": (2, 4),
    "drop_path_rate": 0.0,
    "num_classes": 10,
}


@dataclass(frozen=True)
class PyramidCase(Case):
    """A host of 64 x 64 pixels and patches of 4: a stage of one block, one of `depth` blocks.

    Attributes:
        new: depths and image size to the host as its library makes it.
        block: path of a block, from stage and place.
        masked: path in a block of what answers zero for pruned patches; "" for the block itself.
        norm_over_space: path in a block of a norm whose statistics are of kept patches only.
        pruning: further options of papr.prune.
        checkpointing: name of the method that turns gradient checkpointing on.
    """

    new: Callable[..., nn.Module]
    block: str
    masked: str
    norm_over_space: str | None = None
    pruning: dict = field(default_factory=dict)
    checkpointing: str | None = None
    rectangles: bool = True
    prefix: int = 0
    patch: int = 4

    def make(self, depth: int, size: tuple[int, int], **changes: object) -> nn.Module:
        return self.new(depths=(1, depth), size=size, **changes)

    def logits(self, model: Callable, images: Tensor) -> Tensor:
        answer = model(images)
        if isinstance(answer, Tensor):
            return answer
        return answer.logits if "logits" in answer else answer.pooler_output

    def checkpoint(self, model: nn.Module) -> None:
        if self.checkpointing:
            getattr(model, self.checkpointing)()

    def blocks(self, model: nn.Module) -> Iterator[tuple[int, nn.Module]]:
        """Every block and its stage."""
        modules = dict(model.named_modules())
        for stage in range(4):
            place = 0
            while (path := self.block.format(stage, place, 2 * stage + 1)) in modules:
                yield stage, modules[path]
                place += 1
            assert place > 0 or stage > 1

    def logits_on_kept(self, dense: nn.Module, images: Tensor, pruned: nn.Module) -> Tensor:
        with contextlib.ExitStack() as stack:
            for stage, block in self.blocks(dense):
                try:
                    chosen = papr.selection(pruned, stage)
                except papr.SelectionError:
                    continue  # a stage left dense
                self.restrict(block, chosen, stack)
            return self.logits(dense, images)

    def restrict(self, block: nn.Module, chosen: papr.Selection, stack) -> None:
        """Make one dense block answer as the paper's on kept patches."""
        mask = chosen.mask()
        part = block.get_submodule(self.masked)
        stack.enter_context(part.register_forward_hook(lambda m, args, out: out * like(mask, out)))
        if self.norm_over_space:
            norm = block.get_submodule(self.norm_over_space)
            stack.enter_context(
                norm.register_forward_pre_hook(lambda m, args: args[0] * like(mask, args[0]))
            )


def like(mask: Tensor, x: Tensor) -> Tensor:
    """A mask (B, H, W) in the layout of (B, N, C), (B, H, W, C) or (B, C, H, W)."""
    if x.ndim == 3:
        return mask.flatten(1).unsqueeze(-1)
    return mask.unsqueeze(-1) if x.shape[1:3] == mask.shape[1:] else mask.unsqueeze(1)


class KeptCase(PyramidCase):
    """attention="kept": no weight for pruned keys, and pruned patches stay as they were."""

    def restrict(self, block: nn.Module, chosen: papr.Selection, stack) -> None:
        mask = chosen.mask()

        def as_they_were(module: nn.Module, args: tuple, out: Tensor | tuple) -> Tensor | tuple:
            if isinstance(out, tuple):  # transformers' layers return attention weights too
                return (torch.where(like(mask, out[0]), out[0], args[0]), *out[1:])
            return torch.where(like(mask, out), out, args[0])

        stack.enter_context(block.register_forward_hook(as_they_were))
        if self.block.startswith("features"):
            self._restrict_torchvision(block, mask, stack)
        elif "encoder" in self.block:
            self._restrict_transformers(block, mask, stack)
        else:
            self._restrict_timm(block, mask, stack)

    def _restrict_timm(self, block: nn.Module, mask: Tensor, stack) -> None:
        pruned = keys(mask, block.window_size, block.shift_size, False)  # (B * windows, 1, area)

        def masked(module: nn.Module, args: tuple, kwargs: dict):
            area = pruned.shape[-1]
            own = kwargs["mask"]
            if own is not None:
                own = own.repeat(len(mask), 1, 1)
            total = pruned.expand(-1, area, -1).to(args[0]) + (0 if own is None else own)
            return args, {"mask": total}

        stack.enter_context(block.attn.register_forward_pre_hook(masked, with_kwargs=True))

    def _restrict_transformers(self, block: nn.Module, mask: Tensor, stack) -> None:
        def masked(module: nn.Module, args: tuple):
            windows, own, *rest = args
            sides = (block.window_size,) * 2 if isinstance(block.window_size, int) else None
            shift = 0 if own is None else sides[0] // 2
            pruned = keys(mask, sides, (shift, shift))
            total = pruned.expand(-1, pruned.shape[-1], -1).to(windows)
            if own is not None:
                total = total + own.repeat(len(mask), 1, 1)
            return (windows, total, *rest)

        stack.enter_context(block.attention.register_forward_pre_hook(masked))

    def _restrict_torchvision(self, block: nn.Module, mask: Tensor, stack) -> None:
        attn, grid = block.attn, mask.shape[1:]
        sides = zip(attn.window_size, grid, attn.shift_size, strict=True)
        shift = [0 if window >= side else s for window, side, s in sides]
        pruned = keys(mask, attn.window_size, shift).unsqueeze(1)
        original = attn.get_relative_position_bias
        attn.get_relative_position_bias = lambda: original() + pruned.to(original())
        stack.callback(lambda: vars(attn).pop("get_relative_position_bias"))


def keys(
    mask: Tensor, window: tuple[int, int], shift: tuple[int, int], padded_first: bool = True
) -> Tensor:
    """-1e4 for pruned keys of each window, 0 for kept ones and padding: (B * windows, 1, area)."""
    x = (mask.float() - 1) * 1e4
    pad = (0, -x.shape[2] % window[1], 0, -x.shape[1] % window[0])
    if padded_first:
        x = F.pad(x, pad)
    x = torch.roll(x, shifts=(-shift[0], -shift[1]), dims=(1, 2))
    if not padded_first:
        x = F.pad(x, pad)
    windows = x.unfold(1, window[0], window[0]).unfold(2, window[1], window[1])
    return windows.reshape(-1, 1, window[0] * window[1])


def _timm(cls: type[nn.Module], **options: object) -> Callable[..., nn.Module]:
    def new(depths: tuple[int, ...], size: tuple[int, int], **changes: object) -> nn.Module:
        return cls(**{**SWIN, **options, "depths": depths, "img_size": size, **changes})

    return new


def _timm_convnext(**options: object) -> Callable[..., nn.Module]:
    def new(depths: tuple[int, ...], size: tuple[int, int], **changes: object) -> nn.Module:
        shape = {"depths": (*depths, 1, 1), "dims": (20, 28, 36, 44), "num_classes": 10}
        return ConvNeXt(**{**shape, **options, **changes})

    return new


def _torchvision_swin(second: bool, window: int = 4) -> Callable[..., nn.Module]:
    def new(depths: tuple[int, ...], size: tuple[int, int], **changes: object) -> nn.Module:
        parts = (
            {
                "block": tv_swin.SwinTransformerBlockV2,
                "downsample_layer": tv_swin.PatchMergingV2,
            }
            if second
            else {}
        )
        return tv_swin.SwinTransformer(
            [4, 4],
            24,
            list(depths),
            [2, 4],
            [window, window],
            stochastic_depth_prob=0.0,
            num_classes=10,
            **parts,
            **changes,
        )

    return new


def _torchvision_convnext(
    depths: tuple[int, ...], size: tuple[int, int], **changes: object
) -> nn.Module:
    settings = [
        tv_convnext.CNBlockConfig(20, 28, depths[0]),
        tv_convnext.CNBlockConfig(28, None, depths[1]),
    ]
    return tv_convnext.ConvNeXt(settings, num_classes=10, **changes)


def _transformers(name: str, config: str, **options: object) -> Callable[..., nn.Module]:
    def new(depths: tuple[int, ...], size: tuple[int, int], **changes: object) -> nn.Module:
        import transformers

        settings = getattr(transformers, config)(
            **{"depths": list(depths), "num_labels": 10, **options, **changes}
        )
        return getattr(transformers, name)(settings)

    return new


#: transformers 5.0 still had other parts in these.
LATER_SWIN = hasattr(modeling_swin, "SwinMLP")
HF_SWIN_LAST = "mlp" if LATER_SWIN else "output"
HF_DINOV3 = "model." if hasattr(modeling_dinov3_convnext, "DINOv3ConvNextEncoder") else ""


def _pads_v2() -> bool:
    """Whether timm's own Swin V2 can pad a shifted grid to whole windows; in 1.0.29 it cannot."""
    try:
        _timm(SwinTransformerV2, window_size=6)((2, 2), (64, 64))
    except RuntimeError:
        return False
    return True


PADDING_V2 = 6 if _pads_v2() else 4
HF_SWIN = {
    "image_size": 64,
    "embed_dim": 24,
    "num_heads": [2, 4],
    "window_size": 4,
    "drop_path_rate": 0.0,
}
HF_CONVNEXT = {"hidden_sizes": [20, 28], "num_stages": 2}
CHECKPOINTS = {"timm": "set_grad_checkpointing", "transformers": "gradient_checkpointing_enable"}

_SWIN = ("layers.{0}.blocks.{1}", "mlp")
_SWIN_V2 = ("layers.{0}.blocks.{1}", "norm2")
_CONVNEXT = ("stages.{0}.blocks.{1}", "")
_HF_SWIN = "swin.encoder.layers.{0}.blocks.{1}"
_HF_CONVNEXT = "{}.encoder.stages.{{0}}.layers.{{1}}"
_TIMM = {"checkpointing": CHECKPOINTS["timm"]}
_HF = {"checkpointing": CHECKPOINTS["transformers"]}
_FEATURES = "features.{2}.{1}"
_KEPT = {"pruning": {"attention": "kept"}}

PYRAMID_CASES: dict[str, Case] = {
    "swin": PyramidCase(_timm(SwinTransformer, window_size=4), *_SWIN, **_TIMM),
    "swin_padded": PyramidCase(_timm(SwinTransformer, window_size=6), *_SWIN, **_TIMM),
    "swin_v2": PyramidCase(_timm(SwinTransformerV2, window_size=4), *_SWIN_V2, **_TIMM),
    "swin_kept": KeptCase(_timm(SwinTransformer, window_size=4), *_SWIN, **_TIMM, **_KEPT),
    "swin_kept_padded": KeptCase(_timm(SwinTransformer, window_size=6), *_SWIN, **_TIMM, **_KEPT),
    "swin_kept_dynamic": KeptCase(
        _timm(SwinTransformer, window_size=4, strict_img_size=False, always_partition=True),
        *_SWIN,
        **_TIMM,
        **_KEPT,
    ),
    "swin_v2_kept": KeptCase(
        _timm(SwinTransformerV2, window_size=PADDING_V2), *_SWIN_V2, **_TIMM, **_KEPT
    ),
    "convnext": PyramidCase(_timm_convnext(ls_init_value=0.5), *_CONVNEXT, **_TIMM),
    "convnext_conv_mlp": PyramidCase(_timm_convnext(conv_mlp=True), *_CONVNEXT, **_TIMM),
    "convnext_overlap": PyramidCase(
        _timm_convnext(stem_type="overlap_tiered", output_stride=32), *_CONVNEXT, **_TIMM
    ),
    "convnext_v2": PyramidCase(
        _timm_convnext(use_grn=True, ls_init_value=None), *_CONVNEXT, "mlp.grn", **_TIMM
    ),
    "convnext_v2_conv_mlp": PyramidCase(
        _timm_convnext(use_grn=True, conv_mlp=True), *_CONVNEXT, "mlp.grn", **_TIMM
    ),
    "torchvision_swin": PyramidCase(_torchvision_swin(False), _FEATURES, "mlp"),
    "torchvision_swin_v2": PyramidCase(_torchvision_swin(True), _FEATURES, "norm2"),
    "torchvision_swin_kept": KeptCase(_torchvision_swin(False), _FEATURES, "mlp", **_KEPT),
    "torchvision_swin_kept_padded": KeptCase(
        _torchvision_swin(False, window=6), _FEATURES, "mlp", **_KEPT
    ),
    "torchvision_swin_v2_kept": KeptCase(_torchvision_swin(True), _FEATURES, "norm2", **_KEPT),
    "torchvision_convnext": PyramidCase(_torchvision_convnext, _FEATURES, ""),
    "hf_swin": PyramidCase(
        _transformers("SwinForImageClassification", "SwinConfig", **HF_SWIN),
        _HF_SWIN,
        HF_SWIN_LAST,
        **_HF,
    ),
    "hf_swin_v2": PyramidCase(
        _transformers("Swinv2ForImageClassification", "Swinv2Config", **HF_SWIN),
        _HF_SWIN.replace("swin.", "swinv2.", 1),
        "layernorm_after",
        **_HF,
    ),
    "hf_swin_kept": KeptCase(
        _transformers("SwinForImageClassification", "SwinConfig", **HF_SWIN),
        _HF_SWIN,
        HF_SWIN_LAST,
        **_HF,
        **_KEPT,
    ),
    "hf_swin_kept_padded": KeptCase(
        _transformers("SwinForImageClassification", "SwinConfig", **{**HF_SWIN, "window_size": 6}),
        _HF_SWIN,
        HF_SWIN_LAST,
        rectangles=False,  # a dense one fails where a window does not fit into the grid
        **_HF,
        **_KEPT,
    ),
    "hf_swin_v2_kept": KeptCase(
        _transformers("Swinv2ForImageClassification", "Swinv2Config", **HF_SWIN),
        _HF_SWIN.replace("swin.", "swinv2.", 1),
        "layernorm_after",
        **_HF,
        **_KEPT,
    ),
    "hf_convnext": PyramidCase(
        _transformers(
            "ConvNextForImageClassification",
            "ConvNextConfig",
            layer_scale_init_value=0.5,
            **HF_CONVNEXT,
        ),
        _HF_CONVNEXT.format("convnext"),
        "",
    ),
    "hf_convnext_v2": PyramidCase(
        _transformers("ConvNextV2ForImageClassification", "ConvNextV2Config", **HF_CONVNEXT),
        _HF_CONVNEXT.format("convnextv2"),
        "",
        "grn",
    ),
    "hf_dinov3_convnext": PyramidCase(
        _transformers("DINOv3ConvNextModel", "DINOv3ConvNextConfig", hidden_sizes=[20, 28]),
        HF_DINOV3 + "stages.{0}.layers.{1}",
        "",
    ),
}

if not LATER_SWIN:  # papr refuses this mode there
    PYRAMID_CASES = {
        name: case for name, case in PYRAMID_CASES.items() if not name.startswith("hf_swin_kept")
    }

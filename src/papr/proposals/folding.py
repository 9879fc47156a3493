"""Make a ConvNet cheap for inference: fuse its branches, fold its batch norms.

Which norm follows which convolution is read off a real forward pass, not off the order of the
modules; and the result is compared with the original before it is used.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.nn.utils.parametrize import is_parametrized

Convolution = nn.Conv2d | nn.Conv3d
Norm = nn.BatchNorm2d | nn.BatchNorm3d

_TOLERANCE = 1e-3  # relative to the largest value; folding itself moves values by about 1e-6


def cheapen(net: nn.Module, call: str, example: Tensor) -> nn.Module:
    """A frozen copy of `net` in eval mode with branches fused and batch norms folded.

    Args:
        net: any ConvNet; left as it is.
        call: the method that is used, "forward" or "forward_features".
        example: an input of a size the network takes, (1, 3, h, w) or (1, 3, t, h, w).

    Returns:
        The cheapest copy that gives the same answer on `example` as the original: fused and
        folded, or fused only, or the plain copy.
    """
    plain = copy.deepcopy(net).eval().requires_grad_(False)
    with torch.no_grad():
        expected = getattr(plain, call)(example)
        best = plain
        for step in (_fuse_branches, _fold_norms, _simplify_padding):
            try:
                candidate = step(copy.deepcopy(best), call, example)
                answer = getattr(candidate, call)(example)
            except Exception:  # a network with ideas of its own about fusing is used as it is
                continue
            if _agree(answer, expected):
                best = candidate
    return best.eval().requires_grad_(False)  # what fusing put in is new, so in training mode


def _agree(answer: object, expected: object) -> bool:
    if not isinstance(answer, Tensor) or not isinstance(expected, Tensor):
        return False
    scale = expected.abs().max().clamp(min=1e-6)
    return answer.shape == expected.shape and bool(
        (answer - expected).abs().max() <= _TOLERANCE * scale
    )


def _fuse_branches(net: nn.Module, call: str, example: Tensor) -> nn.Module:
    """Fuse re-parameterisable branches (MobileOne, RepVGG, RepViT, FastViT ...)."""
    from timm.utils import reparameterize_model

    fused: nn.Module = reparameterize_model(net)
    return fused


def _fold_norms(net: nn.Module, call: str, example: Tensor) -> nn.Module:
    names = {module: name for name, module in net.named_modules()}
    for conv, norm in _conv_norm_pairs(net, call, example):
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight,
            conv.bias,
            norm.running_mean,  # type: ignore[arg-type]  # _is_plain has seen to it
            norm.running_var,  # type: ignore[arg-type]
            norm.eps,
            norm.weight,
            norm.bias,
        )
        parent, _, leaf = names[norm].rpartition(".")
        # timm's BatchNormAct2d carries its activation with it
        rest = [getattr(norm, part) for part in ("drop", "act") if hasattr(norm, part)]
        rest = [module for module in rest if not isinstance(module, nn.Identity)]
        replacement = rest[0] if len(rest) == 1 else nn.Sequential(*rest)
        setattr(net.get_submodule(parent), leaf, replacement)
    return net


class SameConv2d(nn.Conv2d):
    """timm's Conv2dSame (TensorFlow's padding) in terms that torch.compile can reason about.

    How much is padded depends only on the size modulo the stride. timm's ceil and max of symbolic
    sizes, five strides deep, cost a minute of compilation where image sizes vary.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', ceil(H / stride), ceil(W / stride))."""
        if torch.compiler.is_dynamo_compiling() and self._halves():
            x = self._padded_for_any(self._padded_for_any(x, 0), 1)
            return F.conv2d(x, self.weight, self.bias, 2, 0, self.dilation, self.groups)
        rows = self._padding(x.shape[-2], 0)
        columns = self._padding(x.shape[-1], 1)
        if rows or columns:
            x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)

    def _halves(self) -> bool:
        return tuple(self.stride) == (2, 2) and min(self._reach(0), self._reach(1)) > 1

    def _padded_for_any(self, x: Tensor, axis: int) -> Tensor:
        """Padded for stride 2, odd sizes and even ones alike.

        To ask which it is would make a graph for each answer, at every stride. So there is padding
        for both, of which an even size has one line too many in front.
        """
        reach, size = self._reach(axis), x.shape[axis - 2]
        even, odd = (reach - 2) // 2, (reach - 1) // 2  # padding in front
        around = (odd, reach - 1 - odd)
        x = F.pad(x, around if axis else (0, 0, *around))
        first = (odd - even) * (1 - size % 2) if odd > even else 0
        return x.narrow(axis - 2, first, (size + 1) // 2 * 2 + reach - 2)

    def _reach(self, axis: int) -> int:
        return (self.kernel_size[axis] - 1) * self.dilation[axis] + 1

    def _padding(self, size: int, axis: int) -> int:
        stride, reach = self.stride[axis], self._reach(axis)
        rest = size % stride
        if rest == 0:
            return max(reach - stride, 0)
        return max(reach - (1 if stride == 2 else rest), 0)


def _simplify_padding(net: nn.Module, call: str, example: Tensor) -> nn.Module:
    for module in net.modules():
        if type(module).__name__ == "Conv2dSame" and isinstance(module, nn.Conv2d):
            module.__class__ = SameConv2d
    return net


def _conv_norm_pairs(net: nn.Module, call: str, example: Tensor) -> list[tuple[Convolution, Norm]]:
    """(convolution, norm): the norm's input was that convolution's output, each called once."""
    outputs: dict[int, tuple[Convolution, Tensor]] = {}  # the tensors are held, so ids stay theirs
    pairs: list[tuple[Convolution, Norm]] = []
    calls: dict[nn.Module, int] = {}

    def after(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        calls[module] = calls.get(module, 0) + 1
        if isinstance(module, Convolution):
            outputs[id(output)] = (module, output)
        elif isinstance(module, Norm) and id(args[0]) in outputs:
            pairs.append((outputs[id(args[0])][0], module))

    handles = [m.register_forward_hook(after) for m in net.modules() if _is_plain(m)]
    try:
        getattr(net, call)(example)
    finally:
        for handle in handles:
            handle.remove()
    return [(conv, norm) for conv, norm in pairs if calls[conv] == calls[norm] == 1]


def _is_plain(module: nn.Module) -> bool:
    """A convolution that uses its weight as it is, or a batch norm with running statistics."""
    if is_parametrized(module):
        return False
    if isinstance(module, Norm):
        plain = type(module) in (nn.BatchNorm2d, nn.BatchNorm3d)
        known = plain or type(module).__name__ == "BatchNormAct2d"
        return known and module.running_mean is not None
    # torchvision's video networks derive convolutions that differ in how they are made alone
    return isinstance(module, Convolution) and (
        type(module).forward in (nn.Conv2d.forward, nn.Conv3d.forward)
        or type(module).__name__ == "Conv2dSame"
    )

"""Checkpoints of PyTorchVideo and mmaction2: their names, their wrappings, their faults."""

import os
import shutil
import sys
import types
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import clip_reference
from papr.errors import ProposalError
from papr.proposals import checkpoints, clip_nets, slowonly
from papr.proposals.checkpoints import to_layout
from papr.proposals.slowonly import SlowOnly
from papr.proposals.x3d import X3D
from test_clip_nets import same, stir

DEPTHS = {"slowonly_r50": (3, 4, 6, 3), "slowonly_r101": (3, 4, 23, 3)}
LAYOUTS = ("pytorchvideo", "mmaction2")


@pytest.fixture(scope="module")
def nets() -> dict[str, nn.Module]:
    """SlowOnly a sixteenth as wide, of full depth."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slowonly, "STEM", 4)
        return {
            "x3d_pytorchvideo": stir(X3D(first_norm=False)),
            "x3d_mmaction2": stir(X3D()),
            **{name: stir(SlowOnly(12, depths)) for name, depths in DEPTHS.items()},
        }


@pytest.fixture
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slowonly, "STEM", 4)


def loud(net: nn.Module) -> nn.Module:
    """Weights large enough for the answer to depend on every layer."""
    for module in net.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight)
    return net


class TestNames:
    """What stands in the projects' own state_dicts, written down by hand."""

    def test_x3d_in_pytorchvideo(self, nets: dict[str, nn.Module]) -> None:
        theirs = to_layout(nets["x3d_pytorchvideo"].state_dict(), "pytorchvideo")
        assert shapes(theirs) >= {
            ("blocks.0.conv.conv_t.weight", (24, 3, 1, 3, 3)),
            ("blocks.0.conv.conv_xy.weight", (24, 1, 5, 1, 1)),
            ("blocks.0.norm.running_mean", (24,)),
            ("blocks.1.res_blocks.0.branch1_conv.weight", (24, 24, 1, 1, 1)),
            ("blocks.1.res_blocks.0.branch2.conv_a.weight", (54, 24, 1, 1, 1)),
            ("blocks.1.res_blocks.0.branch2.norm_a.weight", (54,)),
            ("blocks.1.res_blocks.0.branch2.conv_b.weight", (54, 1, 3, 3, 3)),
            ("blocks.1.res_blocks.0.branch2.norm_b.0.num_batches_tracked", ()),
            ("blocks.1.res_blocks.0.branch2.norm_b.1.block.0.weight", (8, 54, 1, 1, 1)),
            ("blocks.1.res_blocks.0.branch2.norm_b.1.block.0.bias", (8,)),
            ("blocks.1.res_blocks.0.branch2.norm_b.1.block.2.weight", (54, 8, 1, 1, 1)),
            ("blocks.1.res_blocks.1.branch2.norm_b.0.weight", (54,)),
            ("blocks.2.res_blocks.0.branch1_norm.running_var", (48,)),
            ("blocks.4.res_blocks.6.branch2.conv_c.weight", (192, 432, 1, 1, 1)),
            ("blocks.4.res_blocks.6.branch2.norm_c.bias", (192,)),
            ("blocks.5.pool.pre_conv.weight", (432, 192, 1, 1, 1)),
            ("blocks.5.pool.pre_norm.weight", (432,)),
            ("blocks.5.pool.post_conv.weight", (2048, 432, 1, 1, 1)),
            ("blocks.5.proj.weight", (400, 2048)),
            ("blocks.5.proj.bias", (400,)),
        }
        assert "blocks.1.res_blocks.0.branch1_norm.weight" not in theirs
        assert not any("res_blocks.1.branch2.norm_b.1" in key for key in theirs)
        blocks = 3 + 5 + 11 + 7
        squeezes = 2 + 3 + 6 + 4  # every other block, from the first
        norms = 3 * blocks + 3 + 2  # the shortcuts of three stages, the stem, the last
        convolutions = 3 * blocks + 4 + 2 + 1
        assert len(theirs) == convolutions + 5 * norms + 4 * squeezes + 1 + 2

    def test_x3d_in_mmaction2(self, nets: dict[str, nn.Module]) -> None:
        theirs = to_layout(nets["x3d_mmaction2"].state_dict(), "mmaction2")
        assert shapes(theirs) >= {
            ("backbone.conv1_s.conv.weight", (24, 3, 1, 3, 3)),
            ("backbone.conv1_t.conv.weight", (24, 1, 5, 1, 1)),
            ("backbone.conv1_t.bn.weight", (24,)),
            ("backbone.layer1.0.downsample.conv.weight", (24, 24, 1, 1, 1)),
            ("backbone.layer1.0.downsample.bn.num_batches_tracked", ()),
            ("backbone.layer1.0.conv1.conv.weight", (54, 24, 1, 1, 1)),
            ("backbone.layer1.0.conv1.bn.weight", (54,)),
            ("backbone.layer1.0.conv2.conv.weight", (54, 1, 3, 3, 3)),
            ("backbone.layer1.0.conv2.bn.running_var", (54,)),
            ("backbone.layer1.0.se_module.fc1.weight", (8, 54, 1, 1, 1)),
            ("backbone.layer1.0.se_module.fc2.bias", (54,)),
            ("backbone.layer3.10.conv3.conv.weight", (96, 216, 1, 1, 1)),
            ("backbone.layer3.10.conv3.bn.bias", (96,)),
            ("backbone.conv5.conv.weight", (432, 192, 1, 1, 1)),
            ("backbone.conv5.bn.running_mean", (432,)),
            ("cls_head.fc1.weight", (2048, 432)),
            ("cls_head.fc2.weight", (400, 2048)),
            ("cls_head.fc2.bias", (400,)),
        }
        assert "cls_head.fc1.bias" not in theirs

    def test_slowonly(self) -> None:
        with torch.device("meta"):
            ours = SlowOnly().state_dict()
        assert shapes(to_layout(ours, "pytorchvideo")) >= {
            ("blocks.0.conv.weight", (64, 3, 1, 7, 7)),
            ("blocks.0.norm.weight", (64,)),
            ("blocks.1.res_blocks.0.branch1_conv.weight", (256, 64, 1, 1, 1)),
            ("blocks.1.res_blocks.0.branch1_norm.weight", (256,)),
            ("blocks.2.res_blocks.3.branch2.conv_a.weight", (128, 512, 1, 1, 1)),
            ("blocks.3.res_blocks.5.branch2.conv_a.weight", (256, 1024, 3, 1, 1)),
            ("blocks.3.res_blocks.5.branch2.norm_a.bias", (256,)),
            ("blocks.4.res_blocks.2.branch2.conv_b.weight", (512, 512, 1, 3, 3)),
            ("blocks.4.res_blocks.2.branch2.norm_b.running_mean", (512,)),
            ("blocks.4.res_blocks.2.branch2.conv_c.weight", (2048, 512, 1, 1, 1)),
            ("blocks.4.res_blocks.2.branch2.norm_c.weight", (2048,)),
            ("blocks.5.proj.weight", (400, 2048)),
        }
        assert shapes(to_layout(ours, "mmaction2")) >= {
            ("backbone.conv1.conv.weight", (64, 3, 1, 7, 7)),
            ("backbone.conv1.bn.weight", (64,)),
            ("backbone.layer1.0.downsample.conv.weight", (256, 64, 1, 1, 1)),
            ("backbone.layer1.0.downsample.bn.weight", (256,)),
            ("backbone.layer3.5.conv1.conv.weight", (256, 1024, 3, 1, 1)),
            ("backbone.layer4.2.conv2.conv.weight", (512, 512, 1, 3, 3)),
            ("backbone.layer4.2.conv2.bn.num_batches_tracked", ()),
            ("backbone.layer4.2.conv3.bn.bias", (2048,)),
            ("cls_head.fc_cls.weight", (400, 2048)),
            ("cls_head.fc_cls.bias", (400,)),
        }


def shapes(weights: dict[str, Tensor]) -> set[tuple[str, tuple[int, ...]]]:
    return {(key, tuple(value.shape)) for key, value in weights.items()}


class TestAnswers:
    """Ours against a second implementation that reads the project's own names."""

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_x3d(self, layout: str) -> None:
        net = loud(stir(X3D(7, first_norm=layout == "mmaction2")))
        clip = torch.randn(2, 3, 3, 40, 64)
        with torch.no_grad():
            theirs = to_layout(net.state_dict(), layout)
            features, logits = clip_reference.x3d(theirs, clip, layout)
            assert features.shape == (2, 432, 3, 2, 2)
            assert close(net.forward_features(clip), features)
            assert close(net(clip), logits)

    @pytest.mark.usefixtures("_narrow")
    @pytest.mark.parametrize("name", DEPTHS)
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_slowonly(self, name: str, layout: str) -> None:
        net = loud(stir(SlowOnly(7, DEPTHS[name])))
        clip = torch.randn(2, 3, 3, 40, 64)
        with torch.no_grad():
            theirs = to_layout(net.state_dict(), layout)
            features, logits = clip_reference.slowonly(theirs, clip, layout, DEPTHS[name])
            assert features.shape == (2, 128, 3, 2, 2)
            assert close(net.forward_features(clip), features)
            assert close(net(clip), logits)


def close(answer: Tensor, expected: Tensor) -> bool:
    spread = expected.std()
    assert spread > 1e-3  # else every answer would do
    return bool((answer - expected).abs().max() <= 1e-4 * expected.abs().max())


@pytest.mark.usefixtures("_narrow")
class TestRoundTrip:
    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("which", ["x3d_pytorchvideo", "x3d_mmaction2", *DEPTHS])
    def test_every_network_in_every_layout(
        self, nets: dict[str, nn.Module], which: str, layout: str, tmp_path: Path
    ) -> None:
        net, path = nets[which], tmp_path / "weights.pth"
        theirs = to_layout(net.state_dict(), layout)
        assert not set(theirs) & set(net.state_dict())
        torch.save({"model_state" if layout == "pytorchvideo" else "state_dict": theirs}, path)
        state = torch.get_rng_state()
        made = clip_nets.load(str(path))
        assert torch.equal(torch.get_rng_state(), state)
        assert made.name == (which if which in DEPTHS else "x3d_s")
        assert made.side == (224 if which in DEPTHS else 160)
        imagenet = which in DEPTHS and layout == "mmaction2"
        assert made.mean == ((0.485, 0.456, 0.406) if imagenet else (0.45, 0.45, 0.45))
        assert made.std == ((0.229, 0.224, 0.225) if imagenet else (0.225, 0.225, 0.225))
        assert not any(module.training for module in made.net.modules())
        assert same(made.net, net)
        clip = torch.randn(1, 3, 2, 32, 48)
        with torch.no_grad():
            assert torch.equal(made.net(clip), net(clip))

    def test_bare_prefixed_half_and_old(self, nets: dict[str, nn.Module], tmp_path: Path) -> None:
        """As DDP names them, in float16, and from before norms counted their batches."""
        net, path = nets["slowonly_r50"], tmp_path / "weights.pyth"
        theirs = to_layout(net.state_dict(), "mmaction2")
        kept = {k: v for k, v in theirs.items() if "num_batches_tracked" not in k}
        torch.save({f"module.{k}": v.half() for k, v in kept.items()}, path)
        made = clip_nets.load(str(path)).net
        assert {p.dtype for p in made.parameters()} == {torch.float32}
        assert all(
            torch.equal(v, net.state_dict()[k].half().float())
            for k, v in made.state_dict().items()
            if "num_batches_tracked" not in k
        )

    def test_safetensors(self, nets: dict[str, nn.Module], tmp_path: Path) -> None:
        from safetensors.torch import save_file

        net, path = nets["slowonly_r50"], tmp_path / "weights.safetensors"
        save_file(to_layout(net.state_dict(), "pytorchvideo"), path)
        assert same(clip_nets.load(str(path)).net, net)

    def test_format_before_torch_1_6(self, nets: dict[str, nn.Module], tmp_path: Path) -> None:
        net, path = nets["slowonly_r50"], tmp_path / "weights.pth"
        theirs = {"state_dict": to_layout(net.state_dict(), "mmaction2"), "meta": {"epoch": 196}}
        torch.save(theirs, path, _use_new_zipfile_serialization=False)
        assert same(clip_nets.load(str(path)).net, net)

    def test_training_records_are_passed_over(
        self, nets: dict[str, nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Checkpoints of mmaction2 hold objects of mmengine's and arrays of NumPy's."""
        module = types.ModuleType("mmengine.logging.history_buffer")

        class HistoryBuffer:
            def __init__(self) -> None:
                self._log_history = np.arange(5.0)
                self._statistics_methods = {"mean": np.float64(2)}

        HistoryBuffer.__module__, HistoryBuffer.__qualname__ = module.__name__, "HistoryBuffer"
        module.HistoryBuffer = HistoryBuffer  # type: ignore[attr-defined]
        net, path = nets["slowonly_r101"], tmp_path / "weights.pth"
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "mmengine", types.ModuleType("mmengine"))
            patch.setitem(sys.modules, "mmengine.logging", types.ModuleType("mmengine.logging"))
            patch.setitem(sys.modules, module.__name__, module)
            torch.save(
                {
                    "meta": {"epoch": 196, "cfg": "model = dict()"},
                    "message_hub": {"log_scalars": {"train/loss": HistoryBuffer()}},
                    "state_dict": to_layout(net.state_dict(), "mmaction2"),
                },
                path,
            )
        with pytest.raises(Exception, match="HistoryBuffer"):
            torch.load(path, weights_only=True)
        assert same(clip_nets.load(str(path)).net, net)
        with pytest.raises(Exception, match="HistoryBuffer"):  # nothing was left allowed
            torch.load(path, weights_only=True)

    def test_no_code_of_a_file_is_run(self, nets: dict[str, nn.Module], tmp_path: Path) -> None:
        class Malicious:
            def __init__(self, *call: Any) -> None:
                self.call = call

            def __reduce__(self) -> tuple[Any, ...]:
                return self.call[0], self.call[1:]

        net, path, trace = nets["slowonly_r50"], tmp_path / "weights.pth", tmp_path / "trace"
        theirs = to_layout(net.state_dict(), "mmaction2")
        call = Malicious(shutil.copyfile, __file__, str(trace))
        torch.save({"meta": call, "state_dict": theirs}, path)
        assert same(clip_nets.load(str(path)).net, net)
        assert not trace.exists()
        torch.save({"meta": Malicious(os.mkdir, str(trace)), "state_dict": theirs}, path)
        with pytest.raises(ProposalError, match=r"posix\.mkdir whose module posix is blocked"):
            clip_nets.load(str(path))
        assert not trace.exists()


@pytest.mark.usefixtures("_narrow")
class TestErrors:
    def refused(self, content: object, tmp_path: Path) -> str:
        path = tmp_path / "weights.pth"
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            torch.save(content, path)
        with pytest.raises(ProposalError) as caught:
            clip_nets.load(str(path))
        message = str(caught.value)
        assert str(path) in message
        assert "\n" not in message
        return message.replace(str(path), "FILE")

    def test_files(self, tmp_path: Path) -> None:
        assert self.refused(None, tmp_path) == "expected a checkpoint file, FILE is none"
        assert self.refused(b"", tmp_path) == "expected a checkpoint, FILE is empty"
        for content in (
            b"no weights",
            b"<!DOCTYPE html>\n<html>\n",
            b"\x80\x02garbage",
            b"PK\x03\x04",
        ):
            message = self.refused(content, tmp_path)
            assert message.startswith("cannot read the checkpoint FILE (")
        path = tmp_path / "weights.safetensors"
        path.write_bytes(b"no weights")
        with pytest.raises(ProposalError, match="cannot read the checkpoint"):
            clip_nets.load(str(path))

    def test_a_file_cut_short(self, nets: dict[str, nn.Module], tmp_path: Path) -> None:
        path = tmp_path / "whole.pth"
        torch.save(to_layout(nets["slowonly_r50"].state_dict(), "mmaction2"), path)
        message = self.refused(path.read_bytes()[:-2000], tmp_path)
        assert message.startswith("cannot read the checkpoint FILE (")

    def test_contents(self, tmp_path: Path) -> None:
        assert self.refused([1, 2], tmp_path) == "expected a dict of tensors in FILE, got list"
        assert "got an empty dict" in self.refused({"state_dict": {}}, tmp_path)
        message = self.refused({"epoch": 3}, tmp_path)
        assert message.endswith("under 'model_state' or 'state_dict', got int under 'epoch'")
        assert self.refused({1: torch.ones(2)}, tmp_path).endswith("got Tensor under 1")

    def test_other_networks(self, tmp_path: Path) -> None:
        weights = {f"layer1.{n}.conv1.weight": torch.ones(2) for n in range(5)}
        assert self.refused(weights, tmp_path) == (
            "FILE: expected X3D or SlowOnly in PyTorchVideo's or mmaction2's layout, got the keys "
            "layer1.0.conv1.weight, layer1.1.conv1.weight, layer1.2.conv1.weight, ..."
        )

    def test_other_depths(self, tmp_path: Path) -> None:
        """X3D-L has 5, 10, 25 and 15 blocks."""
        with torch.device("meta"):
            wide = X3D(depths=(5, 10, 25, 15)).state_dict()
        wide = {k: torch.zeros(()).expand(v.shape) for k, v in wide.items()}
        assert self.refused(to_layout(wide, "mmaction2"), tmp_path) == (
            "FILE: expected X3D in mmaction2's layout with 3, 5, 11, 7 blocks in its stages, got "
            "5, 10, 25, 15"
        )

    @pytest.mark.parametrize(
        ("layout", "key"),
        [
            ("pytorchvideo", "blocks.3.res_blocks.5.branch2.norm_a.weight"),
            ("mmaction2", "backbone.layer3.5.conv1.bn.weight"),
        ],
    )
    def test_keys_and_shapes(
        self, nets: dict[str, nn.Module], layout: str, key: str, tmp_path: Path
    ) -> None:
        theirs = to_layout(nets["slowonly_r50"].state_dict(), layout)
        title = f"SlowOnly in {layout}'s layout"
        less = {k: v for k, v in theirs.items() if k != key}
        start = f"FILE: expected the keys of {title}, got "
        assert self.refused(less, tmp_path) == f"{start}1 missing ({key})"
        more = theirs | {"blocks.9.weight": torch.ones(2), f"{key}_g": torch.ones(2)}
        assert self.refused(more, tmp_path) == f"{start}2 unknown (blocks.9.weight, {key}_g)"
        both = less | {"odd": torch.ones(2)}
        assert self.refused(both, tmp_path) == f"{start}1 missing ({key}) and 1 unknown (odd)"
        wrong = theirs | {key: torch.ones(3)}
        assert self.refused(wrong, tmp_path) == f"FILE: expected {title} with {key} (16,), got (3,)"
        headless = {k: v for k, v in theirs.items() if not k.startswith(("cls_head", "blocks.5"))}
        assert "2 missing (" in self.refused(headless, tmp_path)

    def test_slowonly_without_time(self, nets: dict[str, nn.Module], tmp_path: Path) -> None:
        """PyTorchVideo's C2D has SlowOnly's names and other kernels."""
        theirs = to_layout(nets["slowonly_r50"].state_dict(), "pytorchvideo")
        flat = {k: v[:, :, :1] if v.ndim == 5 else v for k, v in theirs.items()}
        message = self.refused(flat, tmp_path)
        assert message.endswith("conv_a.weight (16, 32, 3, 1, 1), got (16, 32, 1, 1, 1)")

    def test_nothing_is_left_behind(self, tmp_path: Path) -> None:
        before = Counter(torch.serialization.get_safe_globals())  # a set's order means nothing
        self.refused({"epoch": np.arange(3)}, tmp_path)
        assert Counter(torch.serialization.get_safe_globals()) == before


def test_the_real_width(tmp_path: Path) -> None:
    """SlowOnly R50 as it is, from PyTorchVideo's layout, with 600 classes."""
    net = SlowOnly(600)
    path = tmp_path / "SLOW_8x8_R50.pyth"
    torch.save({"model_state": to_layout(net.state_dict(), "pytorchvideo")}, path)
    held = checkpoints.load(path)
    assert (held.name, held.layout) == ("slowonly_r50", "pytorchvideo")
    assert same(held.net, net)

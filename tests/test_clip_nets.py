"""The clip networks themselves, and the catalogue that names them."""

from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from clip_reference import convolve_slowly
from papr import hub
from papr.errors import ProposalError
from papr.measure import count_macs
from papr.proposals import checkpoints, clip_nets, slowonly, x3d
from papr.proposals.folding import cheapen

META = {
    "x3d": lambda: x3d.X3D(),
    "slowonly_r50": lambda: slowonly.SlowOnly(),
    "slowonly_r101": lambda: slowonly.SlowOnly(depths=slowonly.DEPTHS[101]),
}


@pytest.fixture(scope="module")
def empty() -> dict[str, nn.Module]:
    """Each network on the meta device: shapes and counts, no numbers."""
    with torch.device("meta"):
        return {name: build().eval() for name, build in META.items()}


def stir(net: nn.Module) -> nn.Module:
    """New norms are the identity, which would hide mistakes."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    return net.eval()


class TestNetworks:
    @pytest.mark.parametrize(
        ("name", "count"),
        # the papers print 3.8 M and 32.5 M; mmaction2's metafile the two of SlowOnly exactly
        [("x3d", 3_794_322), ("slowonly_r50", 32_454_096), ("slowonly_r101", 60_359_120)],
    )
    def test_parameters(self, empty: dict[str, nn.Module], name: str, count: int) -> None:
        assert sum(p.numel() for p in empty[name].parameters()) == count

    @pytest.mark.parametrize(
        ("name", "clip", "giga"),
        [
            ("x3d", (13, 160, 160), 1.96),  # X3D's table 4: X3D-S
            ("x3d", (16, 224, 224), 4.73),  # X3D-M
            ("slowonly_r50", (8, 224, 224), 41.9),  # issue: about 42
            ("slowonly_r50", (8, 256, 256), 54.52),  # PyTorchVideo's model zoo
        ],
    )
    def test_macs(
        self, empty: dict[str, nn.Module], name: str, clip: tuple[int, int, int], giga: float
    ) -> None:
        macs = count_macs(empty[name], torch.empty(1, 3, *clip, device="meta"))
        assert macs.host == pytest.approx(giga * 1e9, rel=0.01)

    @pytest.mark.parametrize(
        ("clip", "grid"),
        [
            ((8, 160, 160), (8, 5, 5)),
            ((8, 224, 224), (8, 7, 7)),
            ((1, 96, 160), (1, 3, 5)),
            ((13, 160, 96), (13, 5, 3)),
            ((2, 97, 33), (2, 4, 2)),
        ],
    )
    @pytest.mark.parametrize(("name", "channels"), [("x3d", 432), ("slowonly_r50", 2048)])
    def test_maps(
        self,
        empty: dict[str, nn.Module],
        name: str,
        channels: int,
        clip: tuple[int, int, int],
        grid: tuple[int, int, int],
    ) -> None:
        pixels = torch.empty(2, 3, *clip, device="meta")
        assert empty[name].forward_features(pixels).shape == (2, channels, *grid)
        assert empty[name](pixels).shape == (2, 400)
        assert empty[name].num_features == channels

    @pytest.mark.parametrize("squeeze", [True, False])
    def test_an_x3d_block_in_numpy(self, squeeze: bool) -> None:
        shortcut = x3d.conv_norm(4, 8, (1, 1, 1), 2)
        block = stir(x3d.Block(4, 8, stride=2, squeeze=squeeze, shortcut=shortcut)).double()
        clip = torch.randn(4, 3, 5, 6, dtype=torch.float64)
        layer = {k: v.detach().numpy() for k, v in block.state_dict().items()}

        inner = relu(
            normalised(layer, "conv1", convolve_slowly(clip, layer["conv1.conv.weight"], 1, 1))
        )
        inner = normalised(
            layer, "conv2", convolve_slowly(inner, layer["conv2.conv.weight"], 2, 18)
        )
        if squeeze:
            mean = inner.mean((1, 2, 3))
            down, up = (layer[f"squeeze.{n}.weight"][:, :, 0, 0, 0] for n in ("down", "up"))
            hidden = relu(down @ mean + layer["squeeze.down.bias"])
            inner = inner * sigmoid(up @ hidden + layer["squeeze.up.bias"])[:, None, None, None]
        inner = inner * sigmoid(inner)
        out = normalised(layer, "conv3", convolve_slowly(inner, layer["conv3.conv.weight"], 1, 1))
        aside = convolve_slowly(clip, layer["shortcut.conv.weight"], 2, 1)
        expected = relu(out + normalised(layer, "shortcut", aside))

        answer = block(clip[None])[0].detach().numpy()
        assert answer.shape == (8, 3, 3, 3)
        assert np.abs(answer - expected).max() < 1e-12

    def test_a_slowonly_block_in_numpy(self) -> None:
        block = slowonly.Bottleneck(8, 2, (3, 1, 1), 1, nn.Identity())
        block = stir(block).double()
        clip = torch.randn(8, 4, 3, 5, dtype=torch.float64)
        layer = {k: v.detach().numpy() for k, v in block.state_dict().items()}
        out = clip.numpy()
        for name in ("conv1", "conv2", "conv3"):
            weight = layer[f"{name}.conv.weight"]
            out = normalised(layer, name, convolve_slowly(out, weight, 1, 1))
            out = relu(out) if name != "conv3" else out
        answer = block(clip[None])[0].detach().numpy()
        assert np.abs(answer - relu(out + clip.numpy())).max() < 1e-12

    @pytest.mark.parametrize("channels", range(24, 500, 6))
    def test_width_of_the_squeeze(self, channels: int) -> None:
        """The nearest multiple of 8, 8 at least, and one more where that lies 10 % below."""
        nearest = min(range(8, 48, 8), key=lambda width: (abs(width - channels / 16), -width))
        expected = nearest + 8 if nearest < 0.9 * channels / 16 else nearest
        assert x3d.squeezed(channels) == expected

    def test_squeezes_of_the_real_widths(self, empty: dict[str, nn.Module]) -> None:
        stages = [getattr(empty["x3d"], f"stage{n}") for n in (1, 2, 3, 4)]
        assert [s[0].squeeze.down.out_channels for s in stages] == [8, 8, 16, 32]
        assert [s[0].conv2.conv.out_channels for s in stages] == [54, 108, 216, 432]
        assert all(isinstance(s[1].squeeze, nn.Identity) for s in stages)


def normalised(layer: dict[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    mean, var, weight, bias = (
        layer[f"{name}.norm.{part}"][:, None, None, None]
        for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / np.sqrt(var + 1e-5) * weight + bias


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


class TestFolding:
    """Batch norms of clip networks vanish into their convolutions, as those of image networks."""

    @pytest.mark.parametrize(
        ("name", "clip"),
        [
            ("x3d_s", (2, 64, 96)),
            ("slowonly_r50", (2, 32, 64)),
            ("mc3_18", (2, 32, 32)),
            ("r2plus1d_18", (8, 32, 32)),
        ],
    )
    def test_no_norm_is_left(
        self, name: str, clip: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(slowonly, "STEM", 8)
        net = stir(clip_nets.load(name, pretrained=False).net)
        pixels = torch.randn(2, 3, *clip)
        cheap = cheapen(net, "forward_features", pixels[:1])
        assert not any(isinstance(m, nn.BatchNorm3d) for m in cheap.modules())
        assert any(isinstance(m, nn.BatchNorm3d) for m in net.modules())
        with torch.no_grad():
            expected, answer = net.forward_features(pixels), cheap.forward_features(pixels)
        assert expected.abs().max() > 0
        assert (answer - expected).abs().max() <= 1e-4 * expected.abs().max()

    def test_parametrised_convolutions_are_left(self) -> None:
        net = nn.Sequential(nn.Conv3d(3, 4, 1), nn.BatchNorm3d(4))
        nn.utils.parametrizations.weight_norm(net[0])
        stir(net)
        clip = torch.randn(1, 3, 2, 4, 4)
        cheap = cheapen(net, "forward", clip)
        assert isinstance(cheap[1], nn.BatchNorm3d)
        assert torch.equal(cheap(clip), net(clip))


class TestCatalogue:
    def test_names(self) -> None:
        assert (
            *("x3d_s", "x3d_m", "slowonly_r50", "slowonly_r101"),
            *("s3d", "mc3_18", "r2plus1d_18"),
        ) == clip_nets.NAMES

    def test_knows(self, tmp_path: Path) -> None:
        odd = tmp_path / "weights.bin"
        assert not clip_nets.knows(str(odd))
        odd.touch()
        known = [*clip_nets.NAMES, str(odd), "x.pth", "x.PYTH", "no/such/x.pt", "x.safetensors"]
        assert all(clip_nets.knows(source) for source in known)
        assert not any(map(clip_nets.knows, ["resnet18.tv_in1k", "glance", "", "x3d"]))

    @pytest.mark.parametrize(
        ("name", "side", "every_frame", "mean", "std"),
        [
            ("x3d_m", 160, False, 0.45, 0.225),
            ("slowonly_r50", 224, False, 0.45, 0.225),
            ("s3d", 224, True, 0.43216, 0.22803),
            ("mc3_18", 112, False, 0.43216, 0.22803),
            ("r2plus1d_18", 112, True, 0.43216, 0.22803),
        ],
    )
    def test_what_it_wants_to_be_shown(
        self,
        name: str,
        side: int,
        every_frame: bool,
        mean: float,
        std: float,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(slowonly, "STEM", 8)
        made = clip_nets.load(name, pretrained=False)
        assert (made.name, made.side, made.every_frame) == (name, side, every_frame)
        assert (made.mean[0], made.std[0]) == (mean, std)
        assert len(made.mean) == len(made.std) == 3
        assert not any(module.training for module in made.net.modules())
        with torch.no_grad():
            frames = made.net.forward_features(torch.randn(1, 3, 8, 64, 64)).shape[2]
        assert frames == (1 if every_frame else 8)

    @pytest.mark.parametrize(
        ("name", "clip"),
        [("s3d", (16, 224, 224)), ("mc3_18", (4, 48, 64)), ("r2plus1d_18", (8, 32, 48))],
    )
    def test_torchvision_heads_on_our_maps(self, name: str, clip: tuple[int, int, int]) -> None:
        adapter = clip_nets.load(name, pretrained=False).net
        net, pixels = adapter.net, torch.randn(1, 3, *clip)
        with torch.no_grad():
            features = adapter.forward_features(pixels)
            if name == "s3d":
                answer = net.classifier(net.avgpool(features)).mean((2, 3, 4))
            else:
                answer = net.fc(net.avgpool(features).flatten(1))
            expected = adapter(pixels)
        assert torch.equal(answer, expected)

    def test_random_weights_follow_the_seed(self) -> None:
        made = []
        for _ in range(2):
            torch.manual_seed(7)
            made.append(clip_nets.load("x3d_s", pretrained=False).net.stem.space.weight)
        assert torch.equal(*made)

    def test_neither_name_nor_file(self) -> None:
        with pytest.raises(ProposalError, match=r"^expected one of x3d_s, .* got 'x3d_xl'$"):
            clip_nets.load("x3d_xl")


@pytest.fixture
def hub_folder(tmp_path: Path) -> Iterator[Path]:
    """torch.hub's folder, empty, for as long as the test runs."""
    before = torch.hub.get_dir()
    torch.hub.set_dir(tmp_path / "hub")
    yield tmp_path / "hub" / "checkpoints"
    torch.hub.set_dir(before)


class TestDownloads:
    @pytest.mark.parametrize(
        ("name", "url", "proxy", "instead"),
        [
            ("x3d_s", "https://localhost:9/X3D_S.pyth", "", "give its path instead"),
            ("x3d_m", "https://localhost:9/X3D_M.pyth", "http://localhost:9", "give its path"),
            ("slowonly_r101", "https://localhost:9/r101.pth", "", "give its path instead"),
            ("s3d", None, "http://localhost:9", "put that file into"),
        ],
    )
    def test_out_of_reach(
        self,
        hub_folder: Path,
        monkeypatch: pytest.MonkeyPatch,
        name: str,
        url: str | None,
        proxy: str,
        instead: str,
    ) -> None:
        """Nothing listens on port 9, with or without a proxy in between."""
        for variable in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
            monkeypatch.delenv(variable, raising=False)
        if proxy:
            monkeypatch.setenv("https_proxy", proxy)
        if url:
            monkeypatch.setitem(clip_nets._URLS, name, url)
        with pytest.raises(ProposalError) as caught:
            clip_nets.load(name)
        message = str(caught.value)
        assert "\n" not in message
        assert f"cannot download the weights of {name} from {url or 'https://'}" in message
        assert instead in message
        assert '"glance" needs no download' in message
        assert not any(hub_folder.glob("*"))

    def test_addresses(self) -> None:
        assert clip_nets._URLS["x3d_m"].endswith("/model_zoo/kinetics/X3D_M.pyth")
        assert clip_nets._URLS["slowonly_r50"].endswith("/model_zoo/kinetics/SLOW_8x8_R50.pyth")
        assert clip_nets._URLS["slowonly_r101"].endswith("kinetics400-rgb_20220901-e6281431.pth")
        assert all(url.startswith("https://") for url in clip_nets._URLS.values())

    def test_from_a_server_once(
        self, hub_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for variable in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "http_proxy", "HTTP_PROXY"):
            monkeypatch.delenv(variable, raising=False)
        served = tmp_path / "served"
        served.mkdir()
        net = x3d.X3D(first_norm=False)
        theirs = checkpoints.to_layout(net.state_dict(), "pytorchvideo")
        torch.save({"model_state": theirs}, served / "X3D_S.pyth")
        handler = partial(Quiet, directory=served)
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            Thread(target=server.serve_forever, daemon=True).start()
            url = f"http://127.0.0.1:{server.server_port}/X3D_S.pyth"
            monkeypatch.setitem(clip_nets._URLS, "x3d_s", url)
            state = torch.get_rng_state()
            first = clip_nets.load("x3d_s")
            assert torch.equal(torch.get_rng_state(), state)
            server.shutdown()
        assert hub.downloaded(url) == hub_folder / "X3D_S.pyth"
        again = clip_nets.load("x3d_s")  # the server is gone
        for made in (first, again):
            assert (made.name, made.side) == ("x3d_s", 160)
            assert same(made.net, net)

    def test_torchvision_weights(self, hub_folder: Path) -> None:
        from torchvision.models.video import S3D_Weights, s3d

        net = s3d()
        hub_folder.mkdir(parents=True)
        torch.save(net.state_dict(), hub.downloaded(S3D_Weights.DEFAULT.url))
        state = torch.get_rng_state()
        made = clip_nets.load("s3d")
        assert torch.equal(torch.get_rng_state(), state)
        assert same(made.net.net, net)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None: ...


def same(one: nn.Module, other: nn.Module) -> bool:
    ours: dict[str, Tensor] = one.state_dict()
    theirs: dict[str, Tensor] = other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(v, theirs[k]) for k, v in ours.items())

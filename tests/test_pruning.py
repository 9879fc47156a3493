"""What a user calls: arguments, errors before any change, wrappers, the public surface."""

import inspect
import warnings
from dataclasses import fields, replace
from pathlib import Path

import pytest
import timm
import torch
import torchvision
import transformers
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import papr
from conftest import DEVICE
from papr.errors import ConfigError, SelectionError, UnsupportedModelError
from papr.graft import states
from papr.reducers.drop import drop
from tiny import CASES, prune


def snapshot(model: nn.Module) -> list:
    return [(name, type(module), sorted(vars(module))) for name, module in model.named_modules()]


def test_public_names() -> None:
    assert sorted(papr.__all__) == [
        "BudgetedSelection",
        "ConfigError",
        "ExportError",
        "Exported",
        "Features",
        "Merge",
        "PaprError",
        "PaprWarning",
        "Proposal",
        "ProposalError",
        "PruneConfig",
        "PrunedModelError",
        "Recut",
        "Selection",
        "SelectionError",
        "Support",
        "UnsupportedModelError",
        "apply_papr",
        "calibrate",
        "export",
        "features",
        "is_pruned",
        "prune",
        "select",
        "selection",
        "significance_map",
        "supported",
        "unprune",
    ]
    assert all(hasattr(papr, name) for name in papr.__all__)


def test_the_example_of_the_readme() -> None:
    """Two lines on a model as timm makes it, with the proposal that papr ships; undone by one."""
    model = timm.create_model("vit_tiny_patch16_224").eval()
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        dense = model(images)
        assert papr.prune(model, keep=0.5) is model
        assert model(images).shape == dense.shape
        chosen = papr.selection(model)
        papr.unprune(model)
        assert torch.equal(model(images), dense)
    assert chosen.grid == (14, 14)
    assert chosen.indices.shape == (2, 98)
    assert chosen.mask().flatten(1).sum(1).tolist() == [98, 98]


def test_configuration_object() -> None:
    model = CASES["augreg"].build()
    config = papr.PruneConfig(0.25, proposal=lambda x: x.mean(1), trace=False)
    papr.prune(model, config)
    model(torch.randn(1, 3, 64, 64, device=DEVICE))
    with pytest.raises(SelectionError, match="trace=True"):
        papr.selection(model)


def test_options_given_beside_a_configuration_take_the_place_of_its_own(tmp_path: Path) -> None:
    stored = papr.PruneConfig(0.25, "mobileone_s0", stages=None, trace=False, score="softcam")
    (tmp_path / "chosen.json").write_text(stored.to_json())
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    own = {"mean": mean, "std": std, "trace": True, "proposal": "efficientnet_lite0"}
    for config in (stored, tmp_path / "chosen.json"):
        model = papr.prune(CASES["augreg"].build(depth=1), config, **own)
        assert states(model)[0].config == replace(stored, **own)
    with pytest.raises(ConfigError, match="mean and std together"):
        papr.prune(model, stored, mean=mean)
    papr.prune(model, replace(stored, **own), score="significance", mean=None)
    assert states(model)[0].config == replace(stored, **own, score="significance")


def test_the_signature_shows_the_usual_options() -> None:
    shown = inspect.signature(papr.prune).parameters
    for field in fields(papr.PruneConfig):
        assert repr(shown[field.name].default) == repr(field.default)


def test_selection_before_there_is_one() -> None:
    model = CASES["augreg"].build()
    with pytest.raises(SelectionError, match="expected a pruned model"):
        papr.selection(model)
    prune(model)
    with pytest.raises(SelectionError, match="none yet"):
        papr.selection(model)
    with pytest.raises(SelectionError, match="expected pixels to enter the host"):
        model.patch_drop(torch.zeros(1, 65, 48, device=DEVICE))


def test_unprune_of_a_dense_model_does_nothing() -> None:
    model = CASES["augreg"].build()
    before = snapshot(model)
    assert papr.unprune(model) is model
    assert snapshot(model) == before


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: nn.Linear(2, 2),
            r"cannot prune Linear: papr does not know this class; it knows vis",
        ),
        (lambda: timm.create_model("xcit_nano_12_p16_224"), "cannot prune Xcit: it reshapes"),
        (
            lambda: timm.create_model("pit_ti_224"),
            "cannot prune PoolingVisionTransformer: it pools",
        ),
        (lambda: timm.create_model("levit_128s"), "cannot prune LevitDistilled: it pools"),
        (lambda: timm.create_model("hiera_tiny_224"), "cannot prune Hiera: it pools mask units"),
        (
            lambda: timm.create_model("vit_tiny_patch16_224", features_only=True),
            "cannot prune FeatureGetterNet: features_only",
        ),
        (
            lambda: nn.Sequential(CASES["augreg"].build()),
            r"does know the model inside at 0 \(VisionTransformer\)",
        ),
        (
            lambda: CASES["augreg"].build(in_chans=1),
            "expected 3 input channels.*got 1; give proposal=a callable",
        ),
    ],
)
def test_refused_before_anything_is_changed(make, message: str) -> None:
    model = make()
    before = snapshot(model)
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        prune(model)
    assert "\n" not in str(caught.value)
    assert snapshot(model) == before


def test_subclass_with_its_own_forward_is_refused() -> None:
    """As in MAE's repository: a forward_features that never reaches patch_drop."""

    class Own(VisionTransformer):
        def forward_features(self, x: torch.Tensor) -> torch.Tensor:
            return self.blocks(self._pos_embed(self.patch_embed(x)))

    class Inherited(VisionTransformer):
        pass

    options = {"img_size": 64, "patch_size": 8, "embed_dim": 48, "depth": 1, "num_heads": 3}
    with pytest.raises(UnsupportedModelError, match="cannot prune Own: it has its own forward_fea"):
        prune(Own(**options))
    assert papr.supported(Inherited(**options))


def test_a_failing_prune_leaves_an_earlier_one_in_force() -> None:
    model = prune(CASES["augreg"].build(), 0.25)
    with pytest.raises(papr.ProposalError):
        papr.prune(model, 0.5, proposal="no_such_network")
    with pytest.raises(ConfigError):
        prune(model, 0)
    model(torch.randn(1, 3, 64, 64, device=DEVICE))
    assert papr.selection(model).indices.shape == (1, 16)


def test_forward_replaced_on_the_instance_is_refused() -> None:
    model = CASES["augreg"].build()
    own = model.patch_embed.forward
    model.patch_embed.forward = lambda x: own(x)
    with pytest.raises(UnsupportedModelError, match=r"patch_embed\.forward was replaced"):
        prune(model)
    assert not papr.is_pruned(model)
    model.patch_embed.forward = own  # as libraries leave it there that take theirs away
    prune(model)(torch.randn(1, 3, 64, 64, device=DEVICE))
    assert papr.selection(model).indices.shape == (1, 32)


def test_supported_says_why_not() -> None:
    yes = papr.supported(CASES["dinov3"].build())
    assert yes
    assert yes.family == "timm Eva"
    no = papr.supported(nn.Linear(2, 2))
    assert not no
    assert "cannot prune Linear" in no.reason


def test_wrapped_models() -> None:
    model = CASES["augreg"].build()
    wrapped = nn.DataParallel(model)
    assert prune(wrapped) is wrapped
    assert papr.is_pruned(model)
    wrapped(torch.randn(1, 3, 64, 64, device=DEVICE))
    assert papr.selection(wrapped).indices.shape == (1, 32)
    papr.unprune(wrapped)
    assert not papr.is_pruned(model)
    with pytest.raises(UnsupportedModelError, match=r"expected an nn\.Module, got str"):
        papr.prune("vit_base_patch16_224")  # type: ignore[type-var]


def test_unknown_statistics_are_said_and_known_ones_not() -> None:
    with pytest.warns(papr.PaprWarning, match="mean and std of this VisionTransformer are unknown"):
        papr.prune(CASES["augreg"].build(), proposal=papr.Proposal())
    with warnings.catch_warnings():
        warnings.simplefilter("error", papr.PaprWarning)
        papr.prune(timm.create_model("vit_tiny_patch16_224"))
        papr.prune(CASES["augreg"].build(), mean=(0.5,) * 3, std=(0.5,) * 3)
        papr.prune(CASES["augreg"].build(), reference=True)


def test_a_proposal_that_cannot_be_moved_fails_before_anything_is_changed(monkeypatch) -> None:
    model = prune(CASES["augreg"].build(), 0.25)

    def no_room(*args: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(papr.Proposal, "_replica", no_room)
    with pytest.raises(MemoryError):
        prune(model, 0.5)
    monkeypatch.undo()
    model(torch.randn(1, 3, 64, 64, device=DEVICE))
    assert papr.selection(model).indices.shape == (1, 16)


def test_maps_and_tokens_of_another_batch_are_refused() -> None:
    class Averaging(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean(0, keepdim=True)

    model = papr.prune(CASES["augreg"].build(), 0.5, Averaging())
    with pytest.raises(papr.ProposalError, match="a map for each of 3 inputs"):
        model(torch.randn(3, 3, 64, 64, device=DEVICE))
    chosen = papr.select(torch.randn(2, 4, 4), 8)
    with pytest.raises(SelectionError, match=r"expected tokens \(2, 17, C\)"):
        drop(torch.randn(5, 17, 3), chosen, 1)


@pytest.mark.parametrize("shape", [(3, 64, 64), (2, 3, 64, 64, 1), (2, 1, 64, 64)])
def test_pixels_of_another_rank(shape: tuple[int, ...]) -> None:
    model = prune(CASES["augreg"].build())
    with pytest.raises(SelectionError, match=r"expected floating pixels \(B, 3, H, W\), got"):
        model(torch.zeros(shape, device=DEVICE))


@torch.no_grad()
def test_padded_and_cut_images_keep_patch_and_pixel_together() -> None:
    """60 x 68 pixels on a padded host: 8 x 9 patches, the last row and column partly padding."""
    seen = []
    model = CASES["dynamic_padded"].build()
    papr.prune(model, 0.5, lambda x: seen.append(x) or x.mean(1))
    images = torch.randn(1, 3, 60, 68, device=DEVICE)
    model(images)
    assert papr.selection(model).grid == (8, 9)
    assert seen[0].shape[-2:] == (64, 72)
    assert torch.equal(seen[0][..., :60, :68], images)
    assert seen[0][..., 60:, :].abs().sum() == 0


@torch.no_grad()
def test_glance_keeps_an_images_patches_in_any_batch() -> None:
    """The real network, whose convolutions may be blocked differently for other batch sizes."""
    model = papr.prune(timm.create_model("vit_tiny_patch16_224").eval(), 0.5)
    images = torch.randn(9, 3, 224, 224).cumsum(2).cumsum(3) / 50
    model(images)
    together = papr.selection(model).indices
    for i in (0, 4, 8):
        model(images[i : i + 1])
        assert torch.equal(papr.selection(model).indices[0], together[i])


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: timm.create_model("convnext_atto", features_only=True), "forward_intermediates"),
        (lambda: torchvision.models.maxvit_t(), "reshapes its tokens to the full grid"),
        (lambda: transformers.LevitModel(transformers.LevitConfig()), "pools in space"),
        (lambda: transformers.PvtModel(transformers.PvtConfig()), "pools in space"),
        (lambda: transformers.SegformerModel(transformers.SegformerConfig()), "pools in space"),
        (
            lambda: timm.create_model("swinv2_cr_tiny_224"),
            "papr does not know its blocks yet",
        ),
    ],
)
def test_refused_by_name_with_the_reason(make, reason: str) -> None:
    support = papr.supported(make())
    assert not support
    assert reason in support.reason
    assert "\n" not in support.reason

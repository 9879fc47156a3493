"""transformers' hosts as their users meet them: eager attention, saving, pipelines, two towers."""

import copy
import warnings

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import papr
from conftest import DEVICE, TOLERANCE
from papr.errors import UnsupportedModelError
from papr.graft import states
from tiny import prune
from tiny_hf import HF_CASES, SMALL, TEXT, HFCase

pytestmark = pytest.mark.filterwarnings("ignore::papr.PaprWarning")

TOWERS = {name: case for name, case in HF_CASES.items() if isinstance(case, HFCase)}
SMALLER = {**SMALL, "num_hidden_layers": 2}


def images(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, 64, 64, device=DEVICE)


@torch.no_grad()
@pytest.mark.parametrize("name", TOWERS)
def test_eager_attention_agrees_with_fused(name: str) -> None:
    case, x = TOWERS[name], images()
    fused = prune(case.build(), 0.4)
    eager = prune(case.build(attn="eager"), 0.4)
    expected = case.logits(fused, x)
    output = eager(x, output_attentions=True)
    assert (getattr(output, case.answer) - expected).abs().max() < TOLERANCE[torch.float32]
    kept = case.prefix + int(0.4 * 64)
    assert [a.shape for a in output.attentions] == [(2, 3, kept, kept)] * 3


@torch.no_grad()
@pytest.mark.parametrize("name", TOWERS)
def test_hidden_states_hold_kept_tokens_only(name: str) -> None:
    case, x = TOWERS[name], images()
    model = case.build()
    dense = model(x, output_hidden_states=True).hidden_states
    prune(model, 0.5)
    hidden = model(x, output_hidden_states=True).hidden_states
    assert [h.shape for h in hidden] == [(2, case.prefix + 32, 48)] * len(dense)
    chosen = papr.selection(model)
    grid = chosen.restore(hidden[0][:, case.prefix :])
    before = dense[0][:, case.prefix :].transpose(1, 2).reshape(2, 48, 8, 8)
    assert torch.allclose(grid, before * chosen.mask().unsqueeze(1), atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("name", ["hf_vit", "hf_dinov3", "hf_siglip", "hf_beit_both"])
def test_saving_saves_the_dense_model(name: str, tmp_path) -> None:
    case, x = HF_CASES[name], images()
    model = case.build()
    dense = case.logits(model, x)
    prune(model, 0.5)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).to(DEVICE)
    assert not papr.is_pruned(again)
    assert not torch.equal(case.logits(model, x), dense)
    assert torch.equal(case.logits(again, x), dense)
    assert again.state_dict().keys() == model.state_dict().keys()


def test_saving_a_timm_wrapper_saves_the_dense_model(tmp_path) -> None:
    """By its weights: transformers 5.0 cannot load what timm 1.0.20 makes."""
    model = HF_CASES["hf_timm"].build()
    dense = copy.deepcopy(model.timm_model.state_dict())
    prune(model, 0.5).save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors", device=str(DEVICE))
    saved = {name.removeprefix("timm_model."): weight for name, weight in saved.items()}
    assert saved.keys() == dense.keys()
    assert all(torch.equal(saved[name], dense[name]) for name in dense)


@torch.no_grad()
@pytest.mark.parametrize("name", ["hf_vit", "hf_clip"])
def test_through_auto_classes_and_the_pipeline(name: str, tmp_path) -> None:
    HF_CASES[name].build().save_pretrained(tmp_path)
    model = hf.AutoModelForImageClassification.from_pretrained(tmp_path)
    processor = hf.ViTImageProcessor(size={"height": 64, "width": 64})
    prune(model, 0.5, mean=processor.image_mean, std=processor.image_std)
    classify = hf.pipeline("image-classification", model=model, image_processor=processor)
    pixels = np.random.default_rng(0).integers(0, 255, (80, 100, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    answers = classify(image, top_k=10)
    assert papr.selection(model).indices.shape == (1, 32)
    logits = model(processor(image, return_tensors="pt").pixel_values.to(model.device)).logits
    expected = {model.config.id2label[i]: p for i, p in enumerate(logits.softmax(-1)[0].tolist())}
    assert {a["label"]: a["score"] for a in answers} == pytest.approx(expected, abs=1e-5)


def two_towers(library: str) -> nn.Module:
    config = getattr(hf, f"{library}Config")(vision_config=SMALLER, text_config=TEXT)
    torch.manual_seed(2)
    return getattr(hf, f"{library}Model")(config).eval().to(DEVICE)


@torch.no_grad()
@pytest.mark.parametrize(("library", "prefix"), [("CLIP", 1), ("Siglip", 0)])
def test_two_tower_models(library: str, prefix: int) -> None:
    """The vision tower is pruned, by itself as within; the text tower is as it was."""
    model, x = two_towers(library), images(3)
    words = torch.randint(3, 99, (2, 7), device=DEVICE)
    words[:, -1] = 2
    dense = model(input_ids=words, pixel_values=x)
    alone = prune(copy.deepcopy(model).vision_model, 0.5)
    prune(model, 0.5)
    output = model(input_ids=words, pixel_values=x)
    assert papr.selection(model).indices.shape == (3, 32)
    assert torch.equal(output.text_embeds, dense.text_embeds)
    assert output.vision_model_output.last_hidden_state.shape == (3, prefix + 32, 48)
    assert torch.equal(
        output.vision_model_output.last_hidden_state, alone(pixel_values=x).last_hidden_state
    )
    assert not torch.equal(output.logits_per_image, dense.logits_per_image)
    papr.unprune(model)
    assert torch.equal(
        model(input_ids=words, pixel_values=x).logits_per_image, dense.logits_per_image
    )


@torch.no_grad()
def test_forward_replaced_on_the_top_level_instance() -> None:
    """As accelerate does for mixed precision: it wraps the class's forward and reaches the site."""
    model, x = HF_CASES["hf_vit"].build(), images()
    inner = model.forward
    model.forward = lambda *args, **kwargs: inner(*args, **kwargs)
    prune(model, 0.5)
    model(x)
    assert papr.selection(model).indices.shape == (2, 32)
    model.vit.embeddings.forward = model.vit.embeddings.forward  # the graft's, which still acts
    prune(model, 0.25)
    model(x)
    assert papr.selection(model).indices.shape == (2, 16)
    dense = HF_CASES["hf_vit"].build()
    own = dense.vit.embeddings.forward
    dense.vit.embeddings.forward = lambda *args, **kwargs: own(*args, **kwargs)
    with pytest.raises(UnsupportedModelError, match=r"embeddings\.forward was replaced"):
        prune(dense, 0.25)


def test_checkpointing_really_recomputes() -> None:
    """Or the test of its gradients would show nothing."""
    case, calls = HF_CASES["hf_beit"], []
    model = prune(case.build(), 0.5).train()
    case.checkpoint(model)
    for block in case.blocks(model):
        block.get_submodule("layernorm_before").register_forward_hook(lambda *_: calls.append(1))
    case.logits(model, images()).sum().backward()
    assert len(calls) == 2 * 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: hf.ViTForMaskedImageModeling(hf.ViTConfig(**SMALLER)),
            "cannot prune ViTForMaskedImageModeling: it paints missing patches",
        ),
        (
            lambda: hf.BeitForSemanticSegmentation(
                hf.BeitConfig(**{**SMALLER, "num_hidden_layers": 4}, out_indices=[1, 2, 3, 4])
            ),
            "cannot prune BeitForSemanticSegmentation: its head reshapes",
        ),
        (
            lambda: hf.Dinov2Backbone(hf.Dinov2Config(**SMALLER)),
            "cannot prune Dinov2Backbone: backbones return dense feature maps",
        ),
        (
            lambda: hf.ViTMAEModel(hf.ViTMAEConfig(**SMALLER)),
            "cannot prune ViTMAEModel: it drops patches at random",
        ),
        (
            lambda: hf.CLIPTextModel(hf.CLIPTextConfig(**TEXT)),
            "cannot prune CLIPTextModel: it reads text",
        ),
        (
            lambda: hf.TimmWrapperModel(hf.TimmWrapperConfig(architecture="xcit_nano_12_p16_224")),
            "cannot prune Xcit: it reshapes",
        ),
        (
            lambda: nn.Sequential(hf.ViTModel(hf.ViTConfig(**SMALLER))),
            r"it does know the model inside at 0 \(ViTModel\)",
        ),
    ],
)
def test_refused_by_name(make, message: str) -> None:
    model = make()
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        prune(model)
    assert "\n" not in str(caught.value)
    assert not papr.is_pruned(model)


def test_a_subclass_that_replaces_forward_is_refused() -> None:
    class Own(hf.ViTForImageClassification):
        def forward(self, pixel_values, **kwargs):
            return self.vit(pixel_values).last_hidden_state.mean(1)

    class Inherited(hf.ViTForImageClassification):
        pass

    with pytest.raises(UnsupportedModelError, match="cannot prune Own: it has its own forward"):
        prune(Own(hf.ViTConfig(**SMALLER)))
    assert papr.supported(Inherited(hf.ViTConfig(**SMALLER)))


def test_input_statistics() -> None:
    """Unknown of transformers' own models, with advice; known of timm wrappers."""
    vit = HF_CASES["hf_vit"].build()
    with pytest.warns(papr.PaprWarning, match="Pass mean=processor.image_mean, std=processor"):
        papr.prune(vit, proposal=papr.Proposal())
    config = hf.TimmWrapperConfig(
        architecture="vit_tiny_patch16_224",
        pretrained_cfg={"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]},
        model_args={"depth": 1},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", papr.PaprWarning)
        wrapper = papr.prune(hf.TimmWrapperModel(config), proposal=papr.Proposal())
    assert states(wrapper)[0].facts.mean == (0.1, 0.2, 0.3)

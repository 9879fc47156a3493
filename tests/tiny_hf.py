"""transformers' families as tiny random hosts."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import transformers as hf
from torch import Tensor, nn

from tiny_case import Case

SMALL = {
    "hidden_size": 48,
    "num_attention_heads": 3,
    "intermediate_size": 96,
    "image_size": 64,
    "patch_size": 8,
}
LABELS = {"num_labels": 10}

Head = Callable[[nn.Module, Tensor], Tensor]


@dataclass(frozen=True)
class HFCase(Case):
    """A transformers host: its class, its configuration, and how its tokens become its answer."""

    cls: type
    config: type
    prefix: int
    head_of: Head
    options: dict = field(default_factory=dict)
    tower: str = ""  # where the module is that returns last_hidden_state
    answer: str = "logits"
    interpolates: bool = True  # whether other sizes have to be asked for

    def make(self, depth: int, size: tuple[int, int], attn: str = "sdpa") -> nn.Module:
        options = {**SMALL, "num_hidden_layers": depth}
        if issubclass(self.config, (hf.CLIPConfig, hf.SiglipConfig)):
            options = {"vision_config": options, "text_config": TEXT}
        config = self.config(**{**options, **LABELS, **self.options})
        return self.cls._from_config(config, attn_implementation=attn)

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        tower = model.get_submodule(self.tower)
        return list(next(m for m in tower.modules() if isinstance(m, nn.ModuleList)))

    def logits(self, model: Callable, images: Tensor) -> Tensor:
        return getattr(self.call(model, images), self.answer)

    def tokens(self, model: nn.Module, images: Tensor) -> Tensor:
        return self.call(model.get_submodule(self.tower), images).last_hidden_state

    def call(self, model: Callable, images: Tensor):
        """Other sizes than the configuration's have to be asked for, in most families."""
        if self.interpolates and images.shape[-2:] != (64, 64):
            return model(images, interpolate_pos_encoding=True)
        return model(images)

    def head(self, model: nn.Module, tokens: Tensor) -> Tensor:
        return self.head_of(model, tokens)

    def checkpoint(self, model: nn.Module) -> None:
        model.gradient_checkpointing_enable()


@dataclass(frozen=True)
class WrapperCase(Case):
    """A timm host inside transformers' TimmWrapper."""

    cls: type
    prefix: int = 1

    def make(self, depth: int, size: tuple[int, int]) -> nn.Module:
        options = {"img_size": size, "patch_size": 8, "embed_dim": 48, "num_heads": 3}
        config = hf.TimmWrapperConfig(
            architecture="vit_tiny_patch16_224", model_args={**options, "depth": depth}, **LABELS
        )
        return self.cls(config)

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        return list(model.timm_model.blocks)

    def logits(self, model: Callable, images: Tensor) -> Tensor:
        output = model(images)
        return output.logits if "logits" in output else output.pooler_output

    def tokens(self, model: nn.Module, images: Tensor) -> Tensor:
        return model.timm_model.forward_features(images)

    def head(self, model: nn.Module, tokens: Tensor) -> Tensor:
        return model.timm_model.forward_head(tokens)

    def checkpoint(self, model: nn.Module) -> None:
        model.gradient_checkpointing_enable()


def _first(model: nn.Module, tokens: Tensor) -> Tensor:
    return model.classifier(tokens[:, 0])


def _mean(model: nn.Module, tokens: Tensor) -> Tensor:
    return model.classifier(tokens.mean(1))


def _mean_of_patches(model: nn.Module, tokens: Tensor) -> Tensor:
    return model.classifier(tokens[:, 1:].mean(1))


def _first_and_mean(prefix: int) -> Head:
    def head(model: nn.Module, tokens: Tensor) -> Tensor:
        return model.classifier(torch.cat([tokens[:, 0], tokens[:, prefix:].mean(1)], dim=1))

    return head


def _both(model: nn.Module, tokens: Tensor) -> Tensor:
    """Class and distillation token, each with its classifier."""
    of_class, of_teacher = model.cls_classifier, model.distillation_classifier
    return (of_class(tokens[:, 0]) + of_teacher(tokens[:, 1])) / 2


def _beit(model: nn.Module, tokens: Tensor) -> Tensor:
    return model.classifier(model.beit.pooler.layernorm(tokens[:, 1:].mean(1)))


def _attention_pooled(model: nn.Module, tokens: Tensor) -> Tensor:
    tower = getattr(model, "vision_model", model)  # where it is in transformers 5.0
    return tower.head(tokens)


def _projected(model: nn.Module, tokens: Tensor) -> Tensor:
    normed = model.vision_model.post_layernorm(tokens[:, 0])
    return model.visual_projection(normed)


TEXT = {
    "hidden_size": 48,
    "num_attention_heads": 3,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "vocab_size": 99,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
    "projection_size": 48,
}
# nothing random in training, so that two passes agree
STILL = {"pos_embed_rescale": None, "drop_path_rate": 0.0}
BEIT = (hf.BeitForImageClassification, hf.BeitConfig, 1, _beit)
BIAS = {"layer_scale_init_value": 0.1, "drop_path_rate": 0.0}

HF_CASES: dict[str, Case] = {
    "hf_vit": HFCase(hf.ViTForImageClassification, hf.ViTConfig, 1, _first, tower="vit"),
    "hf_vit_model": HFCase(
        hf.ViTModel, hf.ViTConfig, 1, lambda m, tokens: m.pooler(tokens), answer="pooler_output"
    ),
    "hf_deit": HFCase(hf.DeiTForImageClassification, hf.DeiTConfig, 2, _first, tower="deit"),
    "hf_deit_teacher": HFCase(
        hf.DeiTForImageClassificationWithTeacher, hf.DeiTConfig, 2, _both, tower="deit"
    ),
    "hf_msn": HFCase(hf.ViTMSNForImageClassification, hf.ViTMSNConfig, 1, _first, tower="vit"),
    "hf_ijepa": HFCase(hf.IJepaForImageClassification, hf.IJepaConfig, 0, _mean, tower="ijepa"),
    "hf_dinov2": HFCase(
        hf.Dinov2ForImageClassification,
        hf.Dinov2Config,
        1,
        _first_and_mean(1),
        tower="dinov2",
        interpolates=False,
    ),
    "hf_dinov2_registers": HFCase(
        hf.Dinov2WithRegistersForImageClassification,
        hf.Dinov2WithRegistersConfig,
        5,
        _first_and_mean(5),
        tower="dinov2_with_registers",
        interpolates=False,
    ),
    "hf_dinov3": HFCase(
        hf.DINOv3ViTModel,
        hf.DINOv3ViTConfig,
        5,
        lambda m, tokens: tokens[:, 0],
        {"num_register_tokens": 4, **STILL},
        answer="pooler_output",
        interpolates=False,
    ),
    "hf_clip": HFCase(
        hf.CLIPForImageClassification, hf.CLIPConfig, 1, _mean_of_patches, tower="vision_model"
    ),
    "hf_clip_projection": HFCase(
        hf.CLIPVisionModelWithProjection,
        hf.CLIPVisionConfig,
        1,
        _projected,
        tower="vision_model",
        answer="image_embeds",
    ),
    "hf_siglip": HFCase(
        hf.SiglipForImageClassification, hf.SiglipConfig, 0, _mean, tower="vision_model"
    ),
    "hf_siglip_model": HFCase(
        hf.SiglipVisionModel,
        hf.SiglipVisionConfig,
        0,
        _attention_pooled,
        answer="pooler_output",
    ),
    "hf_beit": HFCase(*BEIT, {**BIAS, "use_relative_position_bias": True}, tower="beit"),
    "hf_beit_shared": HFCase(
        *BEIT, {**BIAS, "use_shared_relative_position_bias": True}, tower="beit"
    ),
    "hf_beit_both": HFCase(
        *BEIT,
        {**BIAS, "use_relative_position_bias": True, "use_shared_relative_position_bias": True},
        tower="beit",
    ),
    "hf_beit_absolute": HFCase(
        *BEIT, {**BIAS, "use_absolute_position_embeddings": True}, tower="beit"
    ),
    "hf_timm": WrapperCase(hf.TimmWrapperForImageClassification),
    "hf_timm_model": WrapperCase(hf.TimmWrapperModel),
}

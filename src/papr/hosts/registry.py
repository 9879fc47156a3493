"""Which classes papr knows: qualified class name -> the module whose `plan(model)` cuts it."""

_TIMM = {
    "vision_transformer.VisionTransformer": "timm_vit",
    "deit.VisionTransformerDistilled": "timm_vit",
    "eva.Eva": "timm_eva",
    "cait.Cait": "timm_cait",
    "beit.Beit": "timm_beit",
    "swin_transformer.SwinTransformer": "timm_swin",
    "swin_transformer_v2.SwinTransformerV2": "timm_swin",
    "convnext.ConvNeXt": "timm_convnext",
}

_TORCHVISION = {
    "vision_transformer.VisionTransformer": "torchvision_vit",
    "swin_transformer.SwinTransformer": "torchvision_swin",
    "convnext.ConvNeXt": "torchvision_convnext",
}

#: (model, class); a task model holds the model that is cut.
_TRANSFORMERS = {
    ("vit", "ViTModel"): "hf_vit",
    ("vit", "ViTForImageClassification"): "hf_task",
    ("deit", "DeiTModel"): "hf_vit",
    ("deit", "DeiTForImageClassification"): "hf_task",
    ("deit", "DeiTForImageClassificationWithTeacher"): "hf_task",
    ("vit_msn", "ViTMSNModel"): "hf_vit",
    ("vit_msn", "ViTMSNForImageClassification"): "hf_task",
    ("ijepa", "IJepaModel"): "hf_vit",
    ("ijepa", "IJepaForImageClassification"): "hf_task",
    ("dinov2", "Dinov2Model"): "hf_vit",
    ("dinov2", "Dinov2ForImageClassification"): "hf_task",
    ("dinov2_with_registers", "Dinov2WithRegistersModel"): "hf_vit",
    ("dinov2_with_registers", "Dinov2WithRegistersForImageClassification"): "hf_task",
    ("dinov3_vit", "DINOv3ViTModel"): "hf_dinov3",
    ("clip", "CLIPVisionModel"): "hf_vit",
    ("clip", "CLIPVisionTransformer"): "hf_vit",
    ("clip", "CLIPVisionModelWithProjection"): "hf_task",
    ("clip", "CLIPForImageClassification"): "hf_task",
    ("clip", "CLIPModel"): "hf_task",
    ("siglip", "SiglipVisionModel"): "hf_vit",
    ("siglip", "SiglipVisionTransformer"): "hf_vit",
    ("siglip", "SiglipForImageClassification"): "hf_task",
    ("siglip", "SiglipModel"): "hf_task",
    ("beit", "BeitModel"): "hf_beit",
    ("beit", "BeitForImageClassification"): "hf_task",
    ("swin", "SwinModel"): "hf_swin",
    ("swin", "SwinForImageClassification"): "hf_task",
    ("swinv2", "Swinv2Model"): "hf_swin",
    ("swinv2", "Swinv2ForImageClassification"): "hf_task",
    ("convnext", "ConvNextModel"): "hf_convnext",
    ("convnext", "ConvNextForImageClassification"): "hf_task",
    ("convnextv2", "ConvNextV2Model"): "hf_convnext",
    ("convnextv2", "ConvNextV2ForImageClassification"): "hf_task",
    ("dinov3_convnext", "DINOv3ConvNextModel"): "hf_convnext",
    ("videomae", "VideoMAEModel"): "hf_video",
    ("videomae", "VideoMAEForVideoClassification"): "hf_video",
    ("vivit", "VivitModel"): "hf_video",
    ("vivit", "VivitForVideoClassification"): "hf_task",
    ("vjepa2", "VJEPA2Model"): "hf_vjepa2",
    ("vjepa2", "VJEPA2ForVideoClassification"): "hf_task",
    ("timm_wrapper", "TimmWrapperModel"): "hf_task",
    ("timm_wrapper", "TimmWrapperForImageClassification"): "hf_task",
}

FAMILIES = {
    **{f"timm.models.{name}": f"papr.hosts.{module}" for name, module in _TIMM.items()},
    **{
        f"torchvision.models.{name}": f"papr.hosts.{module}"
        for name, module in _TORCHVISION.items()
    },
    **{
        f"transformers.models.{model}.modeling_{model}.{cls}": f"papr.hosts.{module}"
        for (model, cls), module in _TRANSFORMERS.items()
    },
}

"""Models of known libraries that cannot drop tokens, by class name, and why."""

_GRID = "it reshapes its tokens to the full grid between blocks"
_POOLS = "it pools in space between blocks, so every patch must be there"
_PARTS = (
    "features_only takes the model apart; prune the classification model and call its "
    "forward_intermediates, or papr.features"
)

REFUSED = {
    "Xcit": _GRID,
    "ConVit": "its gated attention mixes in a position map of the full grid",
    "VOLO": _GRID,
    "TNT": "its inner blocks see the pixels of every patch",
    "CrossVit": "its two branches hold patches of two sizes",
    "PoolingVisionTransformer": _POOLS,
    "Levit": _POOLS,
    "LevitDistilled": _POOLS,
    "MultiScaleVit": _POOLS,
    "MaxxVit": _GRID,
    "DaVit": _GRID,
    "PyramidVisionTransformerV2": _POOLS,
    "VisionTransformerSAM": "its window attention reshapes tokens to the full grid",
    "VisionTransformerRelPos": "its relative position biases are not gathered by papr yet",
    "NaFlexVit": "its patches come packed at sizes of their own, which papr does not follow yet",
    "Twins": _POOLS,
    "Nest": _POOLS,
    "CoaT": _GRID,
    "SwinTransformerV2Cr": "its grid stays dense, and papr does not know its blocks yet",
    "Hiera": "it pools mask units in space, which papr does not follow yet",
    "FeatureGetterNet": (
        "features_only models return dense feature maps of every patch; prune the classification "
        "model instead"
    ),
    "FeatureListNet": _PARTS,
    "FeatureDictNet": _PARTS,
    "ViTMAEModel": "it drops patches at random itself, for pretraining",
    "ViTMAEForPreTraining": "it drops patches at random itself, for pretraining",
    "VideoMAEForPreTraining": "it masks tubes at random itself, for pretraining",
    "TimesformerModel": "its time attention needs the same patches in every frame",
}

#: Likewise transformers' classes, by how their names end.
REFUSED_ENDINGS = {
    "Backbone": (
        "backbones return dense feature maps of every patch; prune the model they are made from "
        "and use papr.selection(model).restore(tokens)"
    ),
    "ForMaskedImageModeling": "it paints missing patches, so every patch must be there",
    "ForSemanticSegmentation": "its head reshapes the tokens to the full grid",
    "ForImageSegmentation": "its head reshapes the tokens to the full grid",
    "ForInstanceSegmentation": "its head reshapes the tokens to the full grid",
    "ForUniversalSegmentation": "its head reshapes the tokens to the full grid",
    "ForDepthEstimation": "its head reshapes the tokens to the full grid",
    "TextModel": "it reads text and sees no pixels",
    "TextModelWithProjection": "it reads text and sees no pixels",
}


#: Likewise whole models of transformers and torchvision, by the module they come from.
REFUSED_MODULES = {
    "transformers.models.levit": _POOLS,
    "transformers.models.pvt": _POOLS,
    "transformers.models.pvt_v2": _POOLS,
    "transformers.models.cvt": _POOLS,
    "transformers.models.segformer": _POOLS,
    "transformers.models.poolformer": _POOLS,
    "transformers.models.mobilevit": _GRID,
    "transformers.models.mobilevitv2": _GRID,
    "transformers.models.swiftformer": _GRID,
    "transformers.models.efficientformer": _GRID,
    "transformers.models.sam": "its window attention reshapes tokens to the full grid",
    "transformers.models.sam2": "its window attention reshapes tokens to the full grid",
    "transformers.models.hiera": "it pools mask units in space, which papr does not follow yet",
    "transformers.models.timesformer": "its time attention needs the same patches in every frame",
    "torchvision.models.maxvit": _GRID,
    "torchvision.models.video.mvit": _POOLS,
}


def reason_for(cls: type) -> str | None:
    """Why papr refuses a class of a host library by name; None where it does not."""
    library = cls.__module__.partition(".")[0]
    package = cls.__module__.rpartition(".")[0] if library == "transformers" else cls.__module__
    if cls.__name__ == "GraphModule" and library == "torch":
        return (
            "torch.fx traced it (create_feature_extractor does), and a graph cannot be cut: prune "
            "the model it was made of, and take papr.features or forward hooks for its features"
        )
    if package in REFUSED_MODULES:
        return REFUSED_MODULES[package]
    if library in ("timm", "transformers") and cls.__name__ in REFUSED:
        return REFUSED[cls.__name__]
    if library == "transformers":
        endings = (end for end in REFUSED_ENDINGS if cls.__name__.endswith(end))
        return next((REFUSED_ENDINGS[end] for end in endings), None)
    return None

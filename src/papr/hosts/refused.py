"""Models of known libraries that cannot drop tokens, by class name, and why."""

_GRID = "it reshapes its tokens to the full grid between blocks"
_POOLS = "it pools in space between blocks, so every patch must be there"

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
    "SwinTransformerV2Cr": "its grid stays dense: it needs skipping, which papr does not do yet",
    "Hiera": "it pools mask units in space, which papr does not follow yet",
    "FeatureGetterNet": (
        "features_only models return dense feature maps of every patch; prune the classification "
        "model instead"
    ),
    "TimesformerModel": "its time attention needs the same patches in every frame",
}

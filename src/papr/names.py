"""Names that options offer, where the help of a command can have them without importing torch.

`tests/test_lean.py` holds them to what they name.
"""

from typing import Any

#: Video transformers that need no download: name -> transformers' configuration class and its
#: fields. Their weights are random; the pretrained ones (VideoMAE's are CC-BY-NC-4.0) come by the
#: name that the hub knows them by, such as MCG-NJU/videomae-base-finetuned-kinetics.
VIDEO_HOSTS: dict[str, tuple[str, dict[str, Any]]] = {
    "videomae_small": ("VideoMAEConfig", {"hidden_size": 384, "num_attention_heads": 6}),
    "videomae_base": ("VideoMAEConfig", {}),
    "videomae_large": (
        "VideoMAEConfig",
        {"hidden_size": 1024, "num_attention_heads": 16, "num_hidden_layers": 24},
    ),
    "videomae_huge": (
        "VideoMAEConfig",
        {"hidden_size": 1280, "num_attention_heads": 16, "num_hidden_layers": 32},
    ),
    "vivit_base": ("VivitConfig", {}),
    "vjepa2_large": ("VJEPA2Config", {"frames_per_clip": 16}),
}
#: What stands before a folder in which timm keeps a model.
LOCAL_DIR = "local-dir:"
#: Of `papr.proposals.clip_nets`, which has their weights.
CLIP_NETS = ("x3d_s", "x3d_m", "slowonly_r50", "slowonly_r101", "s3d", "mc3_18", "r2plus1d_18")
#: Of `papr.video.POLICIES`.
POLICIES = ("videomae", "mmaction2", "mmaction2-slowonly", "uniform", "consecutive")
#: Of `papr.baselines.cams.METHODS`.
CAMS = ("papr", "gradcam", "gradcam++", "layercam", "eigencam", "scorecam", "softcam")
#: Those that answer at once; the other, Score-CAM, runs a network 1280 times for a map.
QUICK_CAMS = tuple(name for name in CAMS if name != "scorecam")
#: Ways to run a host, of `papr.compare.modes`: as it is, compiled, and compiled with what it
#: launches on a GPU recorded once and replayed (CUDA graphs).
MODES = ("eager", "compiled", "graphs")
#: Of a deletion or insertion curve, `papr.measure.curves.STEPS`.
CURVE_STEPS = 14

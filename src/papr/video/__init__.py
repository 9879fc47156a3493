"""Videos in, clips out: decoding, sampling of views, label files, overlays."""

from papr.video.decoding import Video, open_video
from papr.video.labels import LabelError, read_labels
from papr.video.sampling import POLICIES, Policy, View, average_views, read_views, views

__all__ = [
    "POLICIES",
    "LabelError",
    "Policy",
    "Video",
    "View",
    "average_views",
    "open_video",
    "read_labels",
    "read_views",
    "views",
]

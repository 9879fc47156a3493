"""Data sets: evaluate a host dense and pruned, at any size, and take up where it stopped."""

import importlib.util

from papr.errors import ConfigError

if importlib.util.find_spec("pyarrow") is None:
    raise ConfigError('expected pyarrow for papr.evaluate: pip install "papr-torch[eval]"')

from papr.evaluate.contenders import Contender, contenders
from papr.evaluate.drift import Drift, drift
from papr.evaluate.evaluation import evaluate
from papr.evaluate.finding import open_source
from papr.evaluate.objects import Objects
from papr.evaluate.predicting import Prediction, predict
from papr.evaluate.predictor import Predictor, unpack_mask
from papr.evaluate.preparing import ImageFile, VideoFile, open_for, prepare_for
from papr.evaluate.sources import DataError, Source
from papr.evaluate.summary import Report, Result
from papr.evaluate.sweep import Sweep, grid, sweep
from papr.evaluate.tuning import Tuned, tune

__all__ = [
    "Contender",
    "DataError",
    "Drift",
    "ImageFile",
    "Objects",
    "Prediction",
    "Predictor",
    "Report",
    "Result",
    "Source",
    "Sweep",
    "Tuned",
    "VideoFile",
    "contenders",
    "drift",
    "evaluate",
    "grid",
    "open_for",
    "open_source",
    "predict",
    "prepare_for",
    "sweep",
    "tune",
    "unpack_mask",
]

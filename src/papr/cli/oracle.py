"""`papr compare --oracle`: scores of the user's own, read from a file, for the images in turn."""

import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from papr.errors import ConfigError, one_line
from papr.significance import describe
from papr.words import counted


class Oracle:
    """Scores by image: a proposal that finds what the user found in the images shown last.

    Not those of the next images at each call: the images of one batch are looked at many times,
    for their quality, their costs and their pictures.

    Args:
        table: scores (N, h, w), one for each image; higher is more significant.
        paths: those N images.

    Raises:
        ConfigError: the counts differ, an image is there twice, or the scores are no (N, h, w) of
            finite numbers.
    """

    def __init__(self, table: Tensor, paths: Sequence[Path]) -> None:
        if not isinstance(table, Tensor) or table.ndim != 3 or table.is_complex():
            raise ConfigError(f"expected --oracle scores (N, h, w), got {describe(table)}")
        if len(table) != len(paths):
            raise ConfigError(
                f"expected --oracle scores of {counted(len(paths), 'image')} found, those that "
                f"cannot be read included, got {describe(table)}"
            )
        self._rows = {path: row for row, path in enumerate(paths)}
        if len(self._rows) < len(paths):
            twice = next(path for row, path in enumerate(paths) if self._rows[path] != row)
            raise ConfigError(f"expected each image once with --oracle, got {twice} again")
        self._table = table.detach().float()  # of masks too, which are bool or integers
        if not self._table.isfinite().all():
            raise ConfigError(
                f"expected finite --oracle scores, got some that are not in {table.dtype}"
            )
        self._shown = self._table[:1]

    def show(self, paths: Sequence[Path], device: torch.device) -> None:
        """These are the images that it will be asked about, in this order."""
        self._shown = self._table[[self._rows[path] for path in paths]].to(device)

    def __call__(self, pixels: Tensor) -> Tensor:
        """The scores (B, h, w) of the first B images shown; from the first again after the last."""
        count = len(self._shown)
        if len(pixels) <= count:
            return self._shown[: len(pixels)]
        return self._shown[torch.arange(len(pixels), device=self._shown.device) % count]


def read_oracle(path: Path, paths: Sequence[Path]) -> Oracle:
    """The scores in a file of NumPy's (.npy) or torch.save's (.pt), one for each of the images.

    Raises:
        ConfigError: the file cannot be read; see `Oracle` for the rest.
    """
    try:
        if path.suffix == ".npy":
            table = torch.from_numpy(np.load(path, allow_pickle=False))
        else:
            table = torch.load(path, map_location="cpu", weights_only=True)
    except (
        OSError,
        ValueError,
        TypeError,
        EOFError,
        RuntimeError,
        pickle.UnpicklingError,
    ) as error:
        raise ConfigError(
            f"expected scores (N, h, w) in the --oracle file {path}, .npy or .pt, got "
            f"{one_line(error)}"
        ) from error
    return Oracle(table, paths)

"""Folders in which timm keeps a model: "local-dir:" and the folder, as `timm.create_model` has it.

A folder holds config.json (the architecture, its arguments, its classes, what its pixels are) and a
file of weights.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from papr.ambient import neutral
from papr.errors import ConfigError
from papr.names import LOCAL_DIR
from papr.provenance import PRETRAINED, RANDOM, Weights, digest_of
from papr.words import counted

CONFIG = "config.json"
#: Names of the file of weights; where a folder holds several, timm and papr take the first.
FILES = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")


class Kept(NamedTuple):
    """A folder of timm's.

    Attributes:
        folder: its path.
        classes: how many its weights tell apart; None where the file does not say.
    """

    folder: Path
    classes: int | None

    def weights(self) -> Path:
        """The file of weights.

        Raises:
            ConfigError: there is none.
        """
        found = next((name for name in FILES if (self.folder / name).is_file()), None)
        if found is None:
            raise ConfigError(f"{_expected(' or '.join(FILES))}, got {_listed(self.folder)}")
        return self.folder / found


def is_timm(name: str) -> bool:
    """Whether it is timm that makes a model of this name: one of its own, or one in a folder."""
    import timm

    return name.startswith(LOCAL_DIR) or bool(timm.is_model(name))


def look_into(name: str) -> Kept:
    """What a folder holds.

    Args:
        name: "local-dir:" and the folder.

    Raises:
        ConfigError: there is no such folder, or it holds no config.json that timm wrote.
    """
    folder = Path(name.removeprefix(LOCAL_DIR))
    if name == LOCAL_DIR:
        raise ConfigError(f"{_expected(CONFIG)}, got none behind the colon")
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise ConfigError(f"{_expected(CONFIG)}, got {folder}, which {what}")
    path = folder / CONFIG
    if not path.is_file():
        raise ConfigError(f"{_expected(CONFIG)}, got {_listed(folder)}")
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"expected JSON in {path}, got {error}") from None
    if not isinstance(told, dict) or "architecture" not in told:
        raise ConfigError(f'expected "architecture" and its name in {path}, as timm writes it')
    own = told.get("pretrained_cfg") or told
    return Kept(folder, told.get("num_classes", own.get("num_classes")))


def create(
    name: str, classes: int | None, random_weights: bool, options: dict[str, Any]
) -> tuple[nn.Module, Weights]:
    """The model in a folder, in eval mode, with its weights.

    Args:
        name: "local-dir:" and the folder.
        classes: how many it is to tell apart; None for as many as its weights do, 0 for the model
            without its classifier.
        random_weights: give it a random classifier where its weights have another.
        options: further ones of `timm.create_model`, in place of those in the folder.

    Raises:
        ConfigError: something is missing there, or does not fit; or its classifier is another, and
            a random one is not asked for.
        TypeError: an option that this model does not have.
    """
    import timm

    kept = look_into(name)
    file = kept.weights()
    weights = Weights(PRETRAINED, str(kept.folder), digest_of(file))
    if classes not in (None, 0, kept.classes):
        why = f"{name} has a classifier of {counted(kept.classes or 0, 'class')}"
        if not random_weights:
            raise ConfigError(f"expected one of {classes} in --num-classes, {why}")
        weights = Weights(RANDOM, str(kept.folder), weights.sha256, why)
    own = options if classes is None else {**options, "num_classes": classes}
    # the file by its name: of a folder timm 1.0.20 has torch.load read it, safetensors or not
    exactly = {"source": "", "file": str(file)}
    try:
        with neutral(seed=0):
            host: nn.Module = timm.create_model(
                name, pretrained=True, pretrained_cfg_overlay=exactly, **own
            )
    except Exception as error:  # an unreadable file, or weights of another model
        if isinstance(error, TypeError) and options:
            raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ConfigError(f"cannot load {file}: {reason}") from None
    if digest_of(file) != weights.sha256:
        raise ConfigError(f"expected {file} to stay as it is while it is read, it changed")
    return host.eval(), weights


def _expected(what: str) -> str:
    return f"expected {LOCAL_DIR} and a folder with {what}"


def _listed(folder: Path) -> str:
    """What a folder holds, for a message."""
    names = sorted(path.name for path in folder.iterdir())
    some = ", ".join(names[:3]) + ", ..." * (len(names) > 3)
    return f"{folder} with {some or 'nothing in it'}"

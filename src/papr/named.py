"""Hosts by name, each with where its weights come from.

Random weights are the caller's decision: weights that cannot be had are an error.
"""

import contextlib
import difflib
import importlib.util
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from papr import timm_folders
from papr.ambient import neutral
from papr.errors import ConfigError
from papr.hub import (
    create,
    fetch,
    no_weights,
    patient_only_online,
    source_of,
    why_not,
    without_bars,
)
from papr.names import LOCAL_DIR
from papr.names import VIDEO_HOSTS as VIDEO_HOSTS
from papr.provenance import ASKED, CHECKPOINT, FLAG, PRETRAINED, RANDOM, Weights, digest_of
from papr.timm_folders import is_timm
from papr.words import counted

_NEAR = 3  # names that are suggested
#: Of models of images and texts, what embeds images: the class they were saved as -> its tower.
_TOWERS = {"CLIPModel": "CLIPVisionModelWithProjection", "SiglipModel": "SiglipVisionModel"}


def create_video(name: str, random_weights: bool = False) -> tuple[nn.Module, Weights]:
    """A video host of transformers with a classifier, in eval mode.

    Args:
        name: one of `VIDEO_HOSTS`, which have random weights and 400 classes; or what transformers'
            `from_pretrained` takes: a name on the hub, or a folder.
        random_weights: see `create_classifier`.

    Returns:
        The host, and where its weights come from; random ones are the same every time.

    Raises:
        ConfigError: transformers is missing, the name is unknown, or there are no weights, its
            classifier's included, and random ones are not asked for.
    """
    if importlib.util.find_spec("transformers") is None:
        raise ConfigError('expected transformers for video: pip install "papr-torch[hf]"')
    import transformers

    if name in VIDEO_HOSTS:
        if not random_weights:
            raise ConfigError(f"{name} is a configuration without weights: {FLAG}")
        kind, fields = VIDEO_HOSTS[name]
        width = fields.get("hidden_size")
        more = {} if width is None else {"intermediate_size": 4 * width}
        config = getattr(transformers, kind)(**fields, **more, num_labels=400)
        with neutral(seed=0):  # a run that is taken up again needs its host
            model = transformers.AutoModelForVideoClassification.from_config(config)
        return model.eval(), Weights(RANDOM, name, why=ASKED)
    return _from_hub(
        transformers.AutoModelForVideoClassification,
        name,
        f"without a download there are {', '.join(VIDEO_HOSTS)}, with random weights",
        random_weights,
    )


def takes_clips(name: str) -> bool:
    """Whether a name is that of a video host, for `create_video`, by transformers' configuration.

    Args:
        name: anything; what is not known to be a video host is none.
    """
    if name in VIDEO_HOSTS:
        return True
    known = "/" in name or Path(name).is_dir()
    if is_timm(name) or name.startswith("torchvision/") or not known:
        return False
    if importlib.util.find_spec("transformers") is None:
        return False
    from transformers import PretrainedConfig
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES as FAMILIES,
    )

    with contextlib.suppress(OSError, ValueError), patient_only_online():
        return PretrainedConfig.get_config_dict(name)[0].get("model_type") in FAMILIES
    return False


def create_classifier(
    name: str,
    checkpoint: Path | None = None,
    classes: int | None = None,
    random_weights: bool = False,
    **options: Any,
) -> tuple[nn.Module, Weights]:
    """A host of images with its classifier, in eval mode.

    Args:
        name: a timm model; "local-dir:" and a folder in which timm keeps one; "torchvision/" and
            one of its models; or what transformers' `from_pretrained` takes: a name on the hub,
            with a slash, or a folder.
        checkpoint: a file of a timm model's own weights.
        classes: how many it has, where that is another number than the timm model's usual.
        random_weights: take random ones instead of what would be downloaded, nothing is. A
            checkpoint and a folder are read; what a folder's weights lack is random.
        **options: of a timm model, further ones of `timm.create_model`.

    Returns:
        The host, and where its weights come from; random ones are the same every time.

    Raises:
        ConfigError: the name is unknown, transformers is missing, or weights are out of reach or
            do not fit, and random ones are not asked for.
    """
    if is_timm(name):
        return _create_timm(name, checkpoint, classes, random_weights, options)
    _refuse_own(checkpoint, classes, repr(name))
    if name.startswith("torchvision/"):
        return _create_torchvision(name.removeprefix("torchvision/"), random_weights)
    if "/" not in name and not Path(name).is_dir():
        raise ConfigError(
            f"expected the name of a timm model, {LOCAL_DIR} and a folder of timm's, torchvision/ "
            f"and one of its models, or a folder or hub name of transformers, got {name!r}"
            f"{meant(name)}"
        )
    if importlib.util.find_spec("transformers") is None:
        raise ConfigError(f'expected transformers for {name}: pip install "papr-torch[hf]"')
    import transformers

    kind = transformers.AutoModelForImageClassification
    return _from_hub(kind, name, "or name a timm model", random_weights)


def _refuse_own(checkpoint: Path | None, classes: int | None, got: str) -> None:
    """Refuse what only a model of timm can be given."""
    if checkpoint is not None or classes is not None:
        raise ConfigError(
            f"expected the name of a timm model with a checkpoint or a number of classes, got {got}"
        )


def meant(name: str, known: Sequence[str] | None = None) -> str:
    """What a name that nothing has may have been meant to be: the end of a message; may be empty.

    Args:
        name: of the user.
        known: names that there are; timm's where None.
    """
    if known is None:
        import timm

        known = timm.list_models()
    begun = sorted((other for other in known if other.startswith(name)), key=len)
    near = begun[:_NEAR] or difflib.get_close_matches(name, known, _NEAR)
    if not near:
        near = [other for other in known if name in other][:_NEAR]
    return f"; is it {' or '.join(near)}?" if name and near else ""


def create_host(
    name: str,
    checkpoint: Path | None = None,
    classes: int | None = None,
    random_weights: bool = False,
) -> tuple[nn.Module, Weights]:
    """A host of images or clips in eval mode, with a classifier or without.

    Args:
        name: as of `create_classifier` and `create_video`; of transformers also a model without a
            classifier, such as DINOv2 or the vision tower of CLIP.
        checkpoint: likewise.
        classes: likewise; 0 for a timm model without its classifier.
        random_weights: likewise.

    Returns:
        As `create_classifier`.

    Raises:
        ConfigError: as there.
    """
    if takes_clips(name):
        _refuse_own(checkpoint, classes, f"the video host {name!r}")
        return create_video(name, random_weights)
    kinds = _architectures(name)
    if not kinds or any("Classification" in kind for kind in kinds):
        return create_classifier(name, checkpoint, classes, random_weights)
    import transformers

    kind = _TOWERS.get(kinds[0], kinds[0])
    whole = kind.endswith(("Model", "WithProjection"))
    own: Any = getattr(transformers, kind, None) if whole else None
    own = own or transformers.AutoModel
    return _from_hub(own, name, "or name a timm model", random_weights)


def _architectures(name: str) -> list[str]:
    """The classes that a model of transformers was saved as; empty where it is none."""
    other = is_timm(name) or name.startswith("torchvision/")
    if other or importlib.util.find_spec("transformers") is None:
        return []
    if "/" not in name and not Path(name).is_dir():
        return []
    from transformers import PretrainedConfig

    with contextlib.suppress(OSError, ValueError), patient_only_online():
        found, _ = PretrainedConfig.get_config_dict(name)
        return list(found.get("architectures") or [])
    return []


def _create_timm(
    name: str,
    checkpoint: Path | None,
    classes: int | None,
    random_weights: bool,
    options: dict[str, Any],
) -> tuple[nn.Module, Weights]:
    own = options if classes is None else {**options, "num_classes": classes}
    if checkpoint is not None:
        return _with_checkpoint(name, checkpoint, own)
    if name.startswith(LOCAL_DIR):
        return timm_folders.create(name, classes, random_weights, options)
    if random_weights:
        with neutral(seed=0):
            host = create(name, pretrained=False, **own).eval()
        return host, Weights(RANDOM, name, why=ASKED)
    trained = _trained_classes(name)
    if classes not in (None, 0, trained):
        raise ConfigError(
            f"expected --checkpoint with a classifier of {counted(classes or 0, 'class')}, "
            f"{name} has {trained}: "
            f"give it, or {FLAG}"
        )
    try:
        host = create(name, pretrained=True, **own).eval()
    except TypeError:  # an option that this model does not have
        raise
    except Exception as error:  # whatever the hub's HTTP stack of the day raises
        raise no_weights(name, error) from error
    return host, Weights(PRETRAINED, source_of(host, name))


def _with_checkpoint(name: str, checkpoint: Path, own: dict[str, Any]) -> tuple[nn.Module, Weights]:
    if not checkpoint.is_file():
        raise ConfigError(f"expected --checkpoint to be a file of weights, got {checkpoint}")
    if name.startswith(LOCAL_DIR):
        timm_folders.look_into(name)
    weights = _of_file(checkpoint)
    try:
        host = create(name, pretrained=False, checkpoint_path=str(checkpoint), **own).eval()
    except Exception as error:  # an unreadable file, or weights of another model
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        hint = "; is it --num-classes?" if "num_classes" not in own else ""
        hint *= "size mismatch" in reason
        raise ConfigError(f"cannot load {checkpoint} into {name}: {reason}{hint}") from None
    if weights != _of_file(checkpoint):
        raise ConfigError(f"expected {checkpoint} to stay as it is while it is read, it changed")
    return host, weights


def _of_file(checkpoint: Path) -> Weights:
    return Weights(CHECKPOINT, str(checkpoint), digest_of(checkpoint))


def _trained_classes(name: str) -> int | None:
    """How many classes a timm model's own weights tell apart."""
    import timm

    config: Any = timm.get_pretrained_cfg(name)
    return None if config is None else config.num_classes


def _create_torchvision(name: str, random_weights: bool) -> tuple[nn.Module, Weights]:
    from torchvision.models import get_model, get_model_weights, list_models

    if name not in list_models():
        raise ConfigError(
            f"expected the name of a torchvision model after the slash, got {name!r}"
            f"{meant(name, list_models())}"
        )
    if random_weights:
        with neutral(seed=0):
            host = get_model(name, weights=None).eval()
        return _sized(host, name), Weights(RANDOM, f"torchvision/{name}", why=ASKED)
    weights = get_model_weights(name).DEFAULT
    try:
        fetch(weights.url)  # before: others wait for the end of the spell
        with neutral(restores=True):
            host = get_model(name, weights=weights).eval()
    except Exception as error:  # an HTTP error, or a file that does not fit its hash
        raise no_weights(f"torchvision/{name}", error, weights.url) from error
    return _sized(host, name), Weights(PRETRAINED, weights.url)


def _sized(host: nn.Module, name: str) -> nn.Module:
    """A model of torchvision that says what size it takes, as only its ViT does of itself."""
    from torchvision.models import get_model_weights

    known = getattr(get_model_weights(name).DEFAULT.transforms, "keywords", {})
    if not hasattr(host, "image_size") and isinstance(known.get("crop_size"), int):
        host.image_size = known["crop_size"]
    return host


def _from_hub(
    kind: Any, name: str, otherwise: str, random_weights: bool
) -> tuple[nn.Module, Weights]:
    """A model of transformers in eval mode, and where its weights come from."""
    try:
        with patient_only_online(), without_bars(), neutral(seed=0):
            if random_weights and not Path(name).is_dir():
                return _without_weights(kind, name), Weights(RANDOM, name, why=ASKED)
            model, found = kind.from_pretrained(name, output_loading_info=True)
            if _lacks_pooler(model, found):
                model, found = type(model).from_pretrained(
                    name, add_pooling_layer=False, output_loading_info=True
                )
    except Exception as error:  # the hub raises whatever its HTTP stack of the day raises
        way = otherwise if random_weights else f"{FLAG}; {otherwise}"
        raise ConfigError(f"cannot load {name} ({why_not(error)}): {way}") from error
    lost = _lost(found)
    if not lost:
        return model.eval(), Weights(PRETRAINED, name)
    why = f"{name} has none for {', '.join(lost[:3])}{', ...' * (len(lost) > 3)}"
    if not random_weights:
        raise ConfigError(f"expected weights for all of {type(model).__name__}, {why}: {FLAG}")
    return model.eval(), Weights(RANDOM, name, why=why)


def _lost(found: Any) -> list[str]:
    """Weights that a model has and its file lacks, as transformers tells when it loads it."""
    return sorted(str(key) for key in [*found["missing_keys"], *found["mismatched_keys"]])


def _lacks_pooler(model: nn.Module, found: Any) -> bool:
    """Whether only the pooler's weights are lost, and the model can do without it.

    So it is with models saved from a classifier, or trained without labels: their embedding is the
    class token's.
    """
    lost = _lost(found)
    optional = "add_pooling_layer" in inspect.signature(type(model)).parameters
    return optional and bool(lost) and all(key.startswith("pooler.") for key in lost)


def _without_weights(kind: Any, name: str) -> nn.Module:
    from transformers import AutoConfig

    automatic = hasattr(kind, "from_config")
    config = (AutoConfig if automatic else kind.config_class).from_pretrained(name)
    model: nn.Module = kind.from_config(config) if automatic else kind(config)
    return model.eval()

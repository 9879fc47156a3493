"""What a model answers to a batch: logits and the embedding they are made from."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papr.baselines.resolution import LowerResolution
from papr.classes import own_names
from papr.compare.rivals import answer, answers_yes_or_no
from papr.wrappers import unwrap


class Answers(NamedTuple):
    """Of N samples, float32 on the model's device.

    Attributes:
        scores: (N, classes); logits, or the mean over views of their softmax. None where the host
            does not classify; of a host of one output, see `papr.compare.rivals.answer`.
        embeddings: (N, D), what goes into the classifier, the mean over views; where there is no
            classifier, what the host returns.
        outputs: (N,), the number that a host of one output answers, the mean over views; None of
            other hosts, and where that number is a yes or no.
    """

    scores: Tensor | None
    embeddings: Tensor
    outputs: Tensor | None = None


def class_count(host: nn.Module) -> int | None:
    """How many classes a host tells apart; None where it does not classify."""
    path = classifier_path(host)
    head = None if path is None else host.get_submodule(path)
    count: int | None = getattr(head, "out_features", getattr(head, "out_channels", None))
    return 2 if count == 1 and answers_yes_or_no(host) else count


def class_names(host: nn.Module) -> list[str] | None:
    """A host's own names of its classes, in order; None where it has none."""
    return own_names(unwrap(host), class_count(host))


def classifier_path(host: nn.Module) -> str | None:
    """Where the last linear layer of a classifier is; None where there is none.

    It is timm's `get_classifier`, or the last linear layer with as many outputs as transformers'
    configuration has labels, or the one that torchvision's classifiers end with.
    """
    host = unwrap(host)
    modules = dict(host.named_modules())
    ask_timm: Any = getattr(host, "get_classifier", None)
    if ask_timm is not None:
        found = ask_timm()
        heads = found if isinstance(found, Sequence) else [found]
        wanted = [m for m in heads if isinstance(m, nn.Linear | nn.Conv2d)]
        return next((path for path, m in modules.items() if any(m is w for w in wanted)), None)
    linear = [path for path, m in modules.items() if isinstance(m, nn.Linear)]
    config = getattr(host, "config", None)
    if config is not None:
        names = getattr(config, "architectures", None) or [type(host).__name__]
        classes = getattr(config, "num_labels", None)
        if not any("Classification" in name for name in [*names, type(host).__name__]):
            return None
        linear = [path for path in linear if modules[path].out_features == classes]
    elif not type(host).__module__.startswith("torchvision."):
        return None
    return linear[-1] if linear else None


@torch.inference_mode()
def ask(model: nn.Module, pixels: Tensor, views: Sequence[int], head: str | None) -> Answers:
    """Run a model once on the views of some samples.

    Args:
        model: a host, dense or pruned.
        pixels: (sum of views, ...).
        views: how many of these each sample has, N numbers.
        head: of `classifier_path` of the dense host.
    """
    seen: list[Tensor] = []
    inner = model.host if isinstance(model, LowerResolution) else model
    handle = None
    if head is not None:
        module = inner.get_submodule(head)
        handle = module.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        output, classifies = answer(inner, model(pixels))
    finally:
        if handle is not None:
            handle.remove()
    embeddings = seen[-1].flatten(1) if len(seen) == 1 else output
    if len(embeddings) != len(pixels):  # the classifier looks at more than the image
        embeddings = output
    scores = output.float() if classifies else None
    outputs = None if classifies or output.shape[1] > 1 else output.float()
    if max(views) > 1:
        embeddings = _means(embeddings.float(), views)
        scores = None if scores is None else _means(scores.softmax(1), views)
        outputs = None if outputs is None else _means(outputs, views)
    return Answers(scores, embeddings.float(), None if outputs is None else outputs[:, 0])


def cosines(found: Tensor, dense: Tensor) -> list[float] | None:
    """The cosine of each embedding with the dense host's; None where it is one number, a sign."""
    if dense.shape[1] == 1:
        return None
    likeness = F.cosine_similarity(found.double(), dense.double())
    near: list[float] = likeness.clamp(-1, 1).tolist()
    return near


def _means(rows: Tensor, views: Sequence[int]) -> Tensor:
    return torch.stack([part.mean(0) for part in rows.split(list(views))])

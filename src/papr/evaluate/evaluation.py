"""A host dense and pruned on a data set: what it costs in answers, and what it saves in time."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from papr.config import PruneConfig
from papr.environment import environment, versions
from papr.errors import ConfigError
from papr.evaluate.answers import ask
from papr.evaluate.contenders import (
    Contender,
    contenders,
    fingerprint,
    provenance_of,
    weights_digest,
)
from papr.evaluate.evaluator import Evaluator
from papr.evaluate.loading import Prepare, make_plan, usual_batch
from papr.evaluate.preparing import in_words, libraries, open_for, prepare_for
from papr.evaluate.ranks import joined
from papr.evaluate.runs import (
    SUMMARY,
    Folder,
    Watch,
    claimed,
    default_folder,
    folder_of,
    identify,
    run,
)
from papr.evaluate.sources import Source
from papr.evaluate.summary import Report, read_times, summarise
from papr.files import write_json
from papr.hosts.inputs import pixel_shape
from papr.measure import count_macs
from papr.provenance import GIVEN, KEY, Provenance, Weights


def evaluate(
    host: nn.Module,
    data: Source | str | Path,
    configs: Sequence[float | PruneConfig] = (0.7, 0.5, 0.3),
    out: str | Path | None = None,
    *,
    name: str = "",
    weights: Weights = GIVEN,
    rivals: Sequence[Contender] = (),
    prepare: Prepare | None = None,
    batch: int | None = None,
    part: int | None = None,
    workers: int | None = None,
    watch: Watch | None = None,
    below: str = "papr-eval",
) -> Report:
    """Answer every sample with the dense host and each configuration, and compare.

    Under `torchrun` the processes share the work; the rows are those of a single one. A run that
    was killed is taken up by the same call. Rows lie in `out`/rows as Parquet, one for each sample
    and contender, figures in `out`/summary.json; see `papr.evaluate.runs`.

    Args:
        host: in eval mode, on its device, in its dtype; left as it is.
        data: a source, or what `open_source` takes.
        configs: keeps or whole configurations, beside the dense host.
        out: the run's folder; None for one below `below` named after the host and the
            configuration, so that the same call finds it again.
        name: what the host was made by: a timm model, or a folder or hub name of transformers. It
            is what finds the host's own preprocessing.
        weights: where the host's come from, which every file says; with random ones, or a random
            proposal, agreement, cosine and accuracy would mean nothing and stay blank.
        rivals: further contenders, such as baselines.
        prepare: decodes a sample, and says how in its `described` or its repr; None for what the
            host's own library does.
        batch: samples a call; None for 64 on a GPU, 16 elsewhere, or as many views of videos.
        part: samples a file; see `make_plan`.
        workers: processes that decode ahead; see `loading.loader`.
        watch: called with samples done since the last call, and how many there are to do, or None.
        below: where folders of runs are made.

    Returns:
        The figures of all sessions together; `speedup` is batch by batch, in turns.

    Raises:
        ConfigError: an option is out of range, or `out` has rows of another configuration.
        DataError: nothing that can be read is in `data`.
        UnsupportedModelError: the host cannot be pruned.
    """
    folder = None if out is None else folder_of(out)
    if not isinstance(data, Source):
        data = open_for(host, data)
    prepare = prepare or prepare_for(host, name)
    found = contenders(host, configs, *statistics_of(prepare))
    provenance = provenance_of(weights, [contender.model for contender in found])
    found += rivals
    weight = next(host.parameters())
    keys, configuration = describe(host, name, prepare, found, provenance)
    plan = make_plan(data, batch or usual_batch(weight.is_cuda, prepare), part)
    configuration |= identify(data, plan)
    if provenance.random:
        configuration["judged"] = False
    folder = folder or Folder(default_folder(below, configuration))
    with joined() as ranks, claimed(folder, configuration, ranks):
        run(
            folder,
            data,
            prepare,
            Evaluator(found, keys, weight.device, weight.dtype, judged=not provenance.random),
            plan,
            workers=workers,
            ranks=ranks,
            pin=weight.is_cuda,
            watch=watch,
        )

        def finish() -> Report:
            report = _report(folder, data, host, found, keys, provenance)
            write_json(folder.path / SUMMARY, report.to_dict())
            return report

        return ranks.first_does(finish)


def describe(
    host: nn.Module,
    name: str,
    prepare: Prepare,
    found: Sequence[Contender],
    provenance: Provenance,
) -> tuple[list[str], dict[str, Any]]:
    """The fingerprint of each contender, and plain data that says what is run.

    Raises:
        ConfigError: `prepare` does not say what it does.
    """
    weight = next(host.parameters())
    common = {
        "model": name or type(host).__name__,
        "weights": weights_digest(host),
        "dtype": str(weight.dtype).removeprefix("torch."),
        "device": weight.device.type,
        "prepare": in_words(prepare),
        "versions": versions(*libraries(host, prepare)),
    }
    keys = [fingerprint(contender.facts, repr(sorted(common.items()))) for contender in found]
    configuration = common | {
        "contenders": [
            {"configuration": key, "name": contender.name, **contender.facts}
            for key, contender in zip(keys, found, strict=True)
        ],
        KEY: provenance.to_dict(),
    }
    return keys, configuration


def _report(
    folder: Folder,
    data: Source,
    host: nn.Module,
    found: Sequence[Contender],
    keys: Sequence[str],
    provenance: Provenance,
) -> Report:
    weight = next(host.parameters())
    shape = pixel_shape(host)
    one = torch.zeros(1, *shape, device=weight.device, dtype=weight.dtype)
    macs = [count_macs(contender.model, one) for contender in found]
    costs = {key: (m.host / 1e9, m.proposal / 1e9) for key, m in zip(keys, macs, strict=True)}
    named = {key: contender.name for key, contender in zip(keys, found, strict=True)}
    times = read_times(folder, keys)
    scores = ask(found[0].model, one, [1], None).scores
    classes = None if scores is None else scores.shape[1]
    results = summarise(folder, named, costs, times, classes)
    if not results[0].images:
        skipped = folder.skipped()
        why = f": {skipped[0].reason}" if skipped else ""
        raise ConfigError(f"expected a sample that can be read, got none{why}")
    configuration = folder.configuration()
    assert configuration is not None
    return Report(
        str(folder.path),
        results,
        folder.skipped(),
        data.ignored,
        data.note,
        times.wall,
        times.waited,
        configuration,
        environment(weight.device),
        "video" if len(shape) == 4 else "image",
        provenance,
    )


def statistics_of(prepare: Prepare) -> tuple[Any, Any]:
    """Mean and standard deviation of what `prepare` makes; None where it does not say."""
    return getattr(prepare, "mean", None), getattr(prepare, "std", None)

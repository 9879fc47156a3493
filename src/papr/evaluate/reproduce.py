"""The paper's tables again: what they need, their counts without any of it, their accuracies with.

Source of every published figure: Mahmud et al., "PaPr", ECCV 2024; see `papr.evaluate.recipes`.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from papr import hub, named
from papr.ambient import neutral
from papr.errors import ConfigError, one_line
from papr.evaluate.evaluation import evaluate
from papr.evaluate.finding import Found
from papr.evaluate.preparing import open_for, timm_transform
from papr.evaluate.recipes import COMPLETE, HostWeights, Recipe, Row
from papr.evaluate.runs import Watch
from papr.evaluate.sources import take
from papr.evaluate.summary import Report, Result
from papr.hosts.inputs import pixel_shape
from papr.measure import Macs, count_macs
from papr.proposals import Proposal, as_proposal, clip_nets
from papr.provenance import ASKED, FLAG, RANDOM, Weights
from papr.pruning import prune, unprune

#: How the data must lie, by `Recipe.data`.
LAYOUTS = {
    "imagenet": (
        "ImageNet-1k validation as a folder of folders: DIR/n01440764/ILSVRC2012_val_00000293.JPEG "
        "and so on, 1000 WordNet ids with 50 images each, about 6.3 GB"
    ),
    "kinetics400": (
        "Kinetics-400 validation: a folder of videos, each in a folder named by its class, or with "
        "a list of names and labels, about 19 800 clips of ten seconds; how many are left depends "
        "on when they were fetched"
    ),
}


@dataclass(frozen=True)
class Counted:
    """One row counted without weights.

    Attributes:
        row: which.
        dense: GMACs of the dense host.
        host: GMACs of the host as configured.
        proposal: GMACs of the proposal.
    """

    row: Row
    dense: float
    host: float
    proposal: float

    @property
    def ours(self) -> float:
        """What is printed, in our counting: GMACs together, or dense over these."""
        total = self.host + self.proposal
        ratio = self.row.macs is not None and self.row.macs.ratio
        return self.dense / total if ratio else total

    @property
    def difference(self) -> float | None:
        """Ours less what is printed; None where nothing is."""
        return None if self.row.macs is None else self.ours - self.row.macs.value

    @property
    def agrees(self) -> bool:
        """Whether it is within the row's tolerance; true where nothing is printed."""
        if self.row.macs is None or self.difference is None:
            return True
        return abs(self.difference) <= self.row.macs.tolerance


def count(recipe: Recipe) -> Iterator[Counted]:
    """Every row's multiply-accumulates, with random weights: no download, no data.

    Hosts and pixels lie on the meta device, where nothing is computed; but where tokens merge the
    host is a real one on the CPU, since papr tries the blocks before it merges in them.
    """
    proposal = _counting_proposal(recipe.proposal, recipe.counted_at)
    for host in recipe.hosts:
        rows = recipe.rows_of(host)
        device = torch.device("cpu" if any(row.merge for row in rows) else "meta")
        model = _random_host(host, device)
        pixels = torch.zeros(1, *pixel_shape(model), device=device)
        dense = count_macs(model, pixels).host / 1e9
        for row in rows:
            found = _count(model, recipe, row, proposal, pixels)
            yield Counted(row, dense, found.host / 1e9, found.proposal / 1e9)


@functools.lru_cache(maxsize=2)
def _counting_proposal(name: str, size: tuple[int, int, int] | None) -> Proposal:
    with neutral(restores=True):
        return Proposal(name, pretrained=False, size=size)


def _count(model: nn.Module, recipe: Recipe, row: Row, proposal: Proposal, pixels: Tensor) -> Macs:
    prune(model, recipe.configuration(row, proposal))
    try:
        return count_macs(model, pixels)
    finally:
        unprune(model)


def _random_host(host: HostWeights, device: torch.device) -> nn.Module:
    """Without weights, the same draws every time, the global random state left as it was."""
    with neutral(seed=0), device, _Readable():  # a run taken up again needs the same host
        return _make(host).to(device)  # what the hub makes of videos lies on the CPU


class _Readable(TorchFunctionMode):
    """Older timm reads the rates that it makes by linspace: those are real on the meta device."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        own = {"device": "cpu"} if func is torch.linspace else {}
        return func(*args, **(own | (kwargs or {})))


def _make(host: HostWeights) -> nn.Module:
    if host.counted in hub.VIDEO_HOSTS:
        return named.create_video(host.counted, random_weights=True)[0]
    import timm

    model: nn.Module = timm.create_model(host.name, pretrained=False, **host.arguments)
    return model.eval()


@dataclass(frozen=True)
class Need:
    """Something that a table needs.

    Attributes:
        what: the thing, with its licence where it has one.
        state: "here", "can be downloaded", "out of reach" or "missing".
        detail: where it is or comes from, and what to do.
        megabytes: its size on disk where that is known.
    """

    what: str
    state: str
    detail: str
    megabytes: float | None = None

    @property
    def met(self) -> bool:
        """Whether it is here or can be had."""
        return self.state in ("here", "can be downloaded")


def needs(
    recipe: Recipe, checkpoints: dict[str, Path] | None = None, data: str | Path | None = None
) -> list[Need]:
    """Weights of hosts and proposal, and data: what is here, and what can be had.

    Args:
        recipe: the table.
        checkpoints: `counted` name -> file, of hosts whose weights no library loads by name.
        data: where the user says the data is.
    """
    given = checkpoints or {}
    found = [_host_need(host, given.get(host.counted)) for host in recipe.hosts]
    return [*found, _proposal_need(recipe.proposal), _data_need(recipe, data)]


def _host_need(host: HostWeights, checkpoint: Path | None) -> Need:
    model = _random_host(host, torch.device("meta"))
    megabytes = sum(p.numel() for p in model.parameters()) * 4 / 1e6
    what = f"weights of {host.name}{', fine-tuned' * bool(host.file)} ({host.licence})"
    if checkpoint is not None:
        state = "here" if checkpoint.is_file() else "missing"
        return Need(what, state, str(checkpoint), megabytes)
    if host.file:
        detail = (
            f"download {host.file} and give it as --checkpoint {host.counted}=FILE; {host.note}"
        )
        return Need(what, "missing", detail, megabytes)
    state, detail = _by_name(host.name, "timm" if "/" not in host.name else "transformers")
    return Need(what, state, "; ".join(filter(None, [detail, host.note])), megabytes)


def _proposal_need(name: str) -> Need:
    what = f"weights of the proposal {name}"
    if clip_nets.knows(name):
        address = clip_nets.address(name)
        path = hub.downloaded(address)
        if path.is_file():
            return Need(what, "here", str(path))
        state = "can be downloaded" if hub.reachable(address) else "out of reach"
        return Need(what, state, f"from {address}, or give the file's path as --proposal")
    state, detail = _by_name(name, "timm")
    return Need(f"{what} (Apple's own licence)" if "mobileone" in name else what, state, detail)


def _by_name(name: str, library: str) -> tuple[str, str]:
    """Whether weights that a library loads by name are here or can be had, and from where."""
    repository, address = name, None
    if library == "timm":
        import timm

        config: Any = timm.get_pretrained_cfg(name)
        repository, address = config.hf_hub_id or "", config.url or None
    cached = _cached(repository) or (address and _if_file(hub.downloaded(address)))
    if cached:
        return "here", str(cached)
    reachable = hub.reachable()  # timm and transformers ask the hub first
    where = f"by name, from the Hugging Face hub's {repository}"
    return ("can be downloaded" if reachable else "out of reach"), where


def _cached(repository: str) -> Path | None:
    """A weights file of a repository in the hub's local cache."""
    if not repository:
        return None
    from huggingface_hub import try_to_load_from_cache

    for file in ("model.safetensors", "pytorch_model.bin"):
        path = try_to_load_from_cache(repository, file)
        if isinstance(path, str):
            return Path(path)
    return None


def _if_file(path: Path) -> Path | None:
    return path if path.is_file() else None


def _data_need(recipe: Recipe, data: str | Path | None) -> Need:
    layout = LAYOUTS[recipe.data]
    if data is None:
        return Need("data", "missing", f"{layout}; give it as --data DIR")
    if not Path(data).exists():
        return Need("data", "missing", f"{data} does not exist; expected {layout}")
    return Need("data", "here", f"{data}; expected {layout}")


@dataclass(frozen=True)
class Ran:
    """One host of a table on data.

    Attributes:
        host: which.
        weights: where they come from.
        rows: its rows, the dense host's first.
        report: of the evaluation; its results are in the order of the rows.
    """

    host: HostWeights
    weights: Weights
    rows: list[Row]
    report: Report

    @property
    def figures(self) -> list[tuple[Row, Result]]:
        """Row and what came of it."""
        return list(zip(self.rows, self.report.results, strict=True))


def create_host(
    host: HostWeights, checkpoint: Path | None = None, random_weights: bool = False
) -> tuple[nn.Module, Weights]:
    """A host with its weights, in eval mode, and where they come from.

    Args:
        host: of a recipe.
        checkpoint: a file of its weights.
        random_weights: take random ones where there is no checkpoint: the path works, accuracy
            means nothing.

    Raises:
        ConfigError: its weights cannot be had, or do not fit.
    """
    if checkpoint is None and random_weights:
        return _random_host(host, torch.device("cpu")), Weights(RANDOM, host.name, why=ASKED)
    try:
        if checkpoint is not None:
            _check_timm(host)
        elif "/" in host.name:
            return named.create_video(host.name)
        elif host.file:
            raise ConfigError(f"--checkpoint {host.counted}=FILE is missing")
        return named.create_classifier(host.name, checkpoint, **host.arguments)
    except Exception as error:  # whatever the hub's HTTP stack of the day raises
        need, why = _host_need(host, None), one_line(error)
        way = "" if FLAG in why else f"; or {FLAG}"
        raise ConfigError(f"cannot have the {need.what}: {why}; {need.detail}{way}") from error


def _check_timm(host: HostWeights) -> None:
    if "/" in host.name:
        raise ConfigError(
            f"expected --checkpoint of a timm model, got {host.counted}; put the folder into the "
            "cache of the Hugging Face hub instead"
        )


def run_host(
    recipe: Recipe,
    host: HostWeights,
    data: str | Path | Found,
    out: Path | None = None,
    *,
    checkpoint: Path | None = None,
    random_weights: bool = False,
    proposal: str | None = None,
    limit: int | None = None,
    device: torch.device | str = "cpu",
    batch: int | None = None,
    workers: int | None = None,
    watch: Watch | None = None,
) -> Ran:
    """Evaluate every row of one host, in reference mode, with the paper's preprocessing.

    Images: the shorter side resized to the host's input, bicubic, and its centre cropped to a
    square (the paper's "resize 224 + centre crop"; timm's own evaluation resizes to 248 or 256
    first), normalised as the host's weights want; the proposal is shown the same pixels.

    Args:
        recipe: the table.
        host: one of its hosts.
        data: what `papr.evaluate.open_source` takes, or what `papr.evaluate.finding.find` found.
        out: folder of the run; None for one below papr-reproduce, as of `papr.evaluate.evaluate`.
        checkpoint: see `create_host`.
        random_weights: likewise; a proposal that would be downloaded is random too.
        proposal: who looks instead of the paper's.
        limit: how many samples, evenly spread; None for all.
        device: where to run.
        batch: see `papr.evaluate.evaluate`; `workers` and `watch` too.
        workers: likewise.
        watch: likewise.

    Raises:
        ConfigError: weights cannot be had, or `out` has rows of another configuration.
        DataError: nothing that can be read is in `data`.
        ProposalError: the proposal's weights cannot be had.
    """
    model, weights = create_host(host, checkpoint, random_weights)
    who = as_proposal(proposal or recipe.proposal, random_weights)
    looks = who if who.weights.random else proposal
    model = model.to(device)
    source = open_for(model, data)
    source = source if limit is None else take(source, limit)
    rows = recipe.rows_of(host)
    prepare = timm_transform(model, crop=1.0) if recipe.data == "imagenet" else None
    report = evaluate(
        model,
        source,
        [recipe.configuration(row, looks) for row in rows[1:]],
        out,
        name=host.name,
        weights=weights,
        prepare=prepare,
        batch=batch,
        workers=workers,
        watch=watch,
        below="papr-reproduce",
    )
    return Ran(host, weights, rows, report)


def is_complete(recipe: Recipe, images: int) -> bool:
    """Whether these are as many images or videos as the validation set has, within 2 %."""
    return images >= 0.98 * COMPLETE[recipe.data]

"""Who is evaluated: the dense host and what is made of it, each with a name and a fingerprint."""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from papr.baselines.resolution import LowerResolution
from papr.config import PruneConfig, Triple, check_statistics
from papr.errors import ConfigError
from papr.graft import states
from papr.hosts.state import HostState
from papr.later import Merge, Recut
from papr.proposals import Proposal, as_proposal
from papr.proposals.clip_nets import is_checkpoint
from papr.provenance import Provenance, Weights
from papr.pruning import prune, selection, unprune
from papr.twins import twin
from papr.wrappers import unwrap

DENSE = "dense"


@dataclass(frozen=True)
class Contender:
    """One way to run the host.

    Attributes:
        name: for people; no two of a run are alike.
        model: takes the host's pixels, (B, 3, H, W) or clips; shares the host's weights.
        facts: plain data that says what it is, down to what changes an answer.
        config: how it is pruned, where `papr.prune` made it of plain data.
    """

    name: str
    model: nn.Module
    facts: dict[str, Any]
    config: PruneConfig | None = None


def contenders(
    host: nn.Module,
    configs: Iterable[float | PruneConfig],
    mean: Triple | None = None,
    std: Triple | None = None,
) -> list[Contender]:
    """The dense host first, then one contender for each configuration below it.

    Args:
        host: in eval mode, on its device, in its dtype; left as it is.
        configs: a keep, or a whole configuration; one that leaves the host as it is adds nothing.
        mean: what the host's pixels are normalised with, for configurations that do not say.
        std: likewise.

    Raises:
        ConfigError: a configuration is out of range, given twice, has a callable for a proposal, or
            reuses significance maps.
        UnsupportedModelError: the host cannot be pruned.
    """
    wanted = [traced(c if isinstance(c, PruneConfig) else PruneConfig(c)) for c in configs]
    if any(config.share is not None for config in wanted):
        raise ConfigError("expected configurations with one keep, got a budget for each image")
    check_streamless(wanted)
    if mean is not None:
        wanted = [c if c.mean is not None else replace(c, mean=mean, std=std) for c in wanted]
    dense = unprune(twin(unwrap(host))).eval()
    found = [Contender(DENSE, dense, {"name": DENSE})]
    pruned = [c for c in wanted if c.keep < 1 or c.merge is not None or c.recut is not None]
    pruned = [with_loaded(config) for config in pruned]
    for config, name in zip(pruned, names(pruned, mean, std), strict=True):
        facts = facts_of(config)
        found.append(Contender(name, prune(twin(dense), config), facts, config))
    return check_distinct(found)


def traced(config: PruneConfig) -> PruneConfig:
    """The configuration with `trace`, which changes no answer: rows say what was kept."""
    return config if config.trace else replace(config, trace=True)


def check_streamless(configs: Iterable[PruneConfig]) -> None:
    """Refuse `reuse`: samples of a data set are no stream.

    A map that serves several samples makes a row depend on which samples came before in the same
    process, and so on interruptions and on how many processes there are.

    Raises:
        ConfigError: a configuration reuses maps.
    """
    for config in configs:
        if config.reuse > 1:
            raise ConfigError(
                "expected configurations with reuse=1, since samples of a data set are no stream, "
                f"got {config.reuse}"
            )


def check_distinct(found: list[Contender]) -> list[Contender]:
    """The same list; ConfigError where two of it have one name."""
    known: set[str] = set()
    for contender in found:
        if contender.name in known:
            raise ConfigError(f"expected contenders that differ, got {contender.name!r} twice")
        known.add(contender.name)
    return found


def facts_of(config: PruneConfig) -> dict[str, Any]:
    """A configuration as plain data; a network that looks first by its name and a fingerprint.

    Of a checkpoint that is its weights': where the file lies changes no answer.

    Raises:
        ConfigError: the proposal is a callable, of which nobody can say what it depends on.
        ProposalError: its checkpoint cannot be read.
    """
    who = with_loaded(config).proposal
    if isinstance(who, Proposal | nn.Module):
        who = as_proposal(who)
    if not isinstance(who, Proposal) or who.net is None:
        return config.to_dict()
    own = f"{weights_digest(who.net)} {who.size} {who.mean} {who.std}"
    name = f"{who.name}-{hashlib.sha256(own.encode()).hexdigest()[:8]}"
    return replace(config, proposal=name).to_dict()


def with_loaded(config: PruneConfig) -> PruneConfig:
    """The configuration with the network that its checkpoint's file holds now.

    What is fingerprinted and what answers are then one, whatever happens to the file.

    Raises:
        ProposalError: the checkpoint cannot be read.
    """
    who = config.proposal
    if isinstance(who, str | os.PathLike) and is_checkpoint(os.fspath(who)):
        return replace(config, proposal=as_proposal(who))
    return config


def provenance_of(host: Weights, models: Iterable[nn.Module]) -> Provenance:
    """Where the weights of a host come from, and those of whoever looks first in its twins."""
    found = [state.proposal for model in models for state in states(model)]
    return Provenance(host, {who.name: who.weights for who in found})


def names(
    configs: Sequence[PruneConfig], mean: Triple | None = None, std: Triple | None = None
) -> list[str]:
    """What people call each configuration: its keep, and whatever is not as usual.

    Args:
        configs: of which no two get one name, unless they are equal.
        mean: what pixels are normalised with as a rule, which is not said.
        std: likewise.

    Examples:
        >>> names([PruneConfig(0.5), PruneConfig(0.5, proposal_size=160)])
        ['keep 0.5', 'keep 0.5, proposal_size 160']
    """
    if mean is not None:
        mean, std = check_statistics(mean, std)
        configs = [
            replace(c, mean=None, std=None) if (c.mean, c.std) == (mean, std) else c
            for c in configs
        ]
    return [_name(config) for config in configs]


def _name(config: PruneConfig) -> str:
    usual = PruneConfig(config.keep).to_dict()
    parts = [f"keep {config.keep:g}"]
    for key, value in facts_of(config).items():
        if value == usual[key]:
            continue
        if key == "merge":
            parts += _unusual("merge", value, asdict(Merge(value["r"])))
        elif key == "recut":
            parts += _unusual("recut", value, asdict(Recut(value["keep"])))
        elif key == "proposal":
            parts.append(str(value))
        else:
            parts.append(_said(key, value))
    return ", ".join(parts)


def _unusual(name: str, options: dict[str, Any], usual: dict[str, Any]) -> list[str]:
    """How much is merged or cut, and by which of its other options."""
    first, *others = options
    said = [_said("r" if first == "r" else name, options[first])]
    return said + [_said(f"{name} {o}", options[o]) for o in others if options[o] != usual[o]]


def _said(name: str, value: Any) -> str:
    if value is True:
        return name
    if value is False:
        return f"not {name}"
    if isinstance(value, list | tuple):
        return f"{name} {'/'.join(map(str, value))}"
    return f"{name} {value}"


def fingerprint(facts: dict[str, Any], weights: str) -> str:
    """What the rows of a contender carry: 12 hexadecimal digits of all that answers depend on.

    Args:
        facts: the contender's.
        weights: the host's, of `weights_digest`, with whatever else holds for all contenders.
    """
    text = json.dumps([facts, weights], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def weights_digest(model: nn.Module) -> str:
    """16 hexadecimal digits that differ where weights, buffers or their names do."""
    found = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        found.update(_bytes(tensor))
    return found.hexdigest()[:16]


def _bytes(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().flatten()
    return bytes(flat.view(torch.uint8).numpy().data) if flat.numel() else b""


def kept_shares(model: nn.Module, count: int) -> list[float]:
    """The share of its patches that each input of the last call kept, 0 to 1.

    Of Swin and ConvNeXt, in the first pruned stage; of a smaller picture, of the whole picture's.

    Args:
        model: a contender's.
        count: inputs of that call.
    """
    found_states: list[HostState] = states(model)
    if isinstance(model, LowerResolution) or not found_states or found_states[0].dense:
        return [1.0] * count
    found: list[float] = selection(model).mask().flatten(1).double().mean(1).tolist()
    return found

"""Who is evaluated: the dense host and what is made of it, each with a name and a fingerprint."""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from papr.baselines.resolution import LowerResolution
from papr.config import PruneConfig, Triple
from papr.errors import ConfigError
from papr.graft import states
from papr.hosts.state import HostState
from papr.proposals import Proposal, as_proposal
from papr.proposals.clip_nets import is_checkpoint
from papr.pruning import prune, selection, unprune, unwrap
from papr.twins import twin

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
        ConfigError: a configuration is out of range, given twice, or has a callable for a proposal.
        UnsupportedModelError: the host cannot be pruned.
    """
    wanted = [c if isinstance(c, PruneConfig) else PruneConfig(c) for c in configs]
    if any(config.share is not None for config in wanted):
        raise ConfigError("expected configurations with one keep, got a budget for each image")
    if mean is not None:
        wanted = [c if c.mean is not None else replace(c, mean=mean, std=std) for c in wanted]
    dense = unprune(twin(unwrap(host))).eval()
    found = [Contender(DENSE, dense, {"name": DENSE})]
    pruned = [c for c in wanted if c.keep < 1 or c.merge is not None or c.recut is not None]
    for config, name in zip(pruned, names(pruned), strict=True):
        facts = facts_of(config)
        found.append(Contender(name, prune(twin(dense), config), facts, config))
    return check_distinct(found)


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

    Of a checkpoint that is its content's: where the file lies changes no answer.

    Raises:
        ConfigError: the proposal is a callable, of which nobody can say what it depends on.
        ProposalError: its checkpoint cannot be read.
    """
    who = config.proposal
    if isinstance(who, str | os.PathLike) and is_checkpoint(os.fspath(who)):
        name = as_proposal(who).name
        content = hashlib.sha256(Path(os.fspath(who)).read_bytes()).hexdigest()[:8]
        return replace(config, proposal=f"{name}-{content}").to_dict()
    if isinstance(who, Proposal | nn.Module):
        who = as_proposal(who)
    if not isinstance(who, Proposal) or who.net is None:
        return config.to_dict()
    own = f"{weights_digest(who.net)} {who.size} {who.mean} {who.std}"
    name = f"{who.name}-{hashlib.sha256(own.encode()).hexdigest()[:8]}"
    return replace(config, proposal=name).to_dict()


def names(configs: Sequence[PruneConfig]) -> list[str]:
    """What people call each configuration: its keep, and whatever is not as usual.

    Examples:
        >>> names([PruneConfig(0.5), PruneConfig(0.5, proposal_size=160)])
        ['keep 0.5', 'keep 0.5, proposal_size 160']
    """
    return [_name(config) for config in configs]


def _name(config: PruneConfig) -> str:
    usual = PruneConfig(config.keep).to_dict()
    parts = [f"keep {config.keep:g}"]
    for key, value in facts_of(replace(config, mean=None, std=None)).items():
        if value == usual[key]:
            continue
        if key == "merge":
            parts.append(f"r {_rate(value['r'])}")
        elif key == "proposal":
            parts.append(str(value))
        elif value is True:
            parts.append(key)
        else:
            parts.append(f"{key} {value}")
    return ", ".join(parts)


def _rate(r: Any) -> str:
    return "/".join(f"{n:g}" for n in r) if isinstance(r, Sequence) else f"{r:g}"


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

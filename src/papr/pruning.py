"""What a user calls: prune, unprune, is_pruned, selection, supported."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from torch import Tensor, nn

from papr.budgets import default_share
from papr.config import ProposalSize, PruneConfig, Triple, check_keep
from papr.errors import ConfigError, PaprError, SelectionError, UnsupportedModelError
from papr.graft import Grafting, states, ungraft
from papr.hosts import Cut, Plan, find_plan
from papr.hosts.explanations import warn_unknown_statistics
from papr.hosts.kept_attention import check_kept
from papr.hosts.presence import Presence
from papr.hosts.state import HostState
from papr.hosts.trying import check_blocks
from papr.later import Merge, Recut, Step, steps
from papr.proposals import Proposal, as_proposal
from papr.selecting import BudgetedSelection, Selection
from papr.wrappers import unwrap

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Support:
    """Whether a model can be pruned; true or false in a condition.

    Attributes:
        ok: whether `papr.prune` takes the model.
        family: the family that cuts it, where it does.
        reason: why not, where it does not; names the class.
    """

    ok: bool
    family: str | None = None
    reason: str | None = None

    def __bool__(self) -> bool:
        return self.ok


class _Usual:
    """An option's usual value where it was not given: shown in a signature as what it is."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __repr__(self) -> str:
        return repr(self.value)


_USUAL: dict[str, Any] = {option.name: _Usual(option.default) for option in fields(PruneConfig)}


def prune(
    model: Model,
    keep: float | str | os.PathLike[str] | PruneConfig = 0.5,
    proposal: str | nn.Module | Callable[[Tensor], Tensor] | Proposal = _USUAL["proposal"],
    *,
    proposal_size: ProposalSize = None,
    reference: bool = _USUAL["reference"],
    mean: Triple | None = None,
    std: Triple | None = None,
    trace: bool = _USUAL["trace"],
    stages: Sequence[int] | None = None,
    attention: str = _USUAL["attention"],
    score: str = _USUAL["score"],
    motion_weight: float = _USUAL["motion_weight"],
    reuse: int = _USUAL["reuse"],
    reuse_threshold: float = _USUAL["reuse_threshold"],
    merge: Merge | None = None,
    pool: int = _USUAL["pool"],
    recut: Recut | None = None,
    target: float | None = None,
    share: float | None = None,
) -> Model:
    """Make a vision model look only at the patches that a small ConvNet finds significant.

    The model is changed in place: the same object, called as before, with fewer tokens inside.
    Pruning a pruned model prunes it anew with the new configuration.

    Pruning does not pay everywhere; `papr bench` and `papr doctor` measure where. It does not pay

    - at small batches on a GPU: a call takes as long as its operations take to launch, and pruning
      adds some;
    - for small hosts, beside which the proposal is no longer small, and at keep near 1;
    - on a GPU for Swin and ConvNeXt in eager code, whose every block gathers and scatters;
    - where what counts fills the middle of the picture: a smaller picture has as few tokens, needs
      no proposal, and is right about as often; see `papr.baselines.lower_resolution`.

    Source: Mahmud et al., "PaPr", ECCV 2024 (arXiv 2403.16020).

    Args:
        model: the host; `papr.supported(model)` says whether it can be pruned. A model wrapped by
            `torch.compile` or DistributedDataParallel may be given as it is.
        keep: fraction of patches that stay, 0 < keep <= 1; or a whole `PruneConfig`, or the path of
            a file that holds one (as text it ends with .json), such as the "chosen.json" of `papr
            tune`: options given beside it, unless they are None, take the place of what it says.
            "auto": each image keeps as many as carry a share of its significance, from 0.75 to 1.25
            times `target`; see `papr.calibrate`.
        proposal: who looks first; see `papr.Proposal`.
        proposal_size: resolution the proposal runs at; see `PruneConfig`.
        reference: exact semantics of the paper's reference; see `PruneConfig`.
        mean: input mean of the host for pixels in [0, 1], where it cannot be read off the model.
        std: input standard deviation of the host, likewise.
        trace: keep the last forward's selection for `papr.selection`.
        stages: of Swin and ConvNeXt, which stages are pruned, counted from 0; None for all.
        attention: of Swin, "dense" as in the paper, or "kept": patches that are not selected take
            no part in window attention either. Faster, and further from the dense model.
        score: "significance", the paper's, of glance its own map; of an image host "softcam", the
            proposal's class activation maps weighted by probability, for proposals with a linear
            classifier, which glance has not; of a video host "motion", which mixes in how much each
            patch changed; see `PruneConfig`.
        motion_weight: of that change, 0 to 1.
        reuse: of a video host, for how many clips of a stream a significance map serves. In
            eager code, without gradients, on one thread; see `papr.proposals.reuse`.
        reuse_threshold: how much the picture may have changed by then; see `PruneConfig`.
        merge: of timm's and torchvision's ViT and transformers' ViT, DeiT and DINOv2: merge alike
            tokens in the blocks (ToMe), on top of pruning or at keep=1 alone; see `papr.Merge`.
        pool: of those, into how many means the pruned patches are pooled instead of being dropped.
        recut: of those, drop tokens once more in a later block; see `papr.Recut`.
        target: with keep="auto", the fraction of patches that stay in the mean; None for 0.5.
        share: with keep="auto", what `papr.calibrate` gave for that target and score; None for the
            one measured for glance or EfficientNet-Lite0 and score="significance".

    Returns:
        `model`, the same object.

    Raises:
        ConfigError: an option is out of range, or the file of a configuration cannot be read.
        UnsupportedModelError: the model cannot be pruned; the message says why.
        ProposalError: the proposal cannot be loaded or returns no feature map.
        PrunedModelError: the model is pruned elsewhere than asked for now, and something was put on
            top of that since; see `unprune`.
        In each case the model is as it was before the call.
    """
    options = {
        "proposal": proposal,
        "proposal_size": proposal_size,
        "reference": reference,
        "mean": mean,
        "std": std,
        "trace": trace,
        "stages": stages,
        "attention": attention,
        "score": score,
        "motion_weight": motion_weight,
        "reuse": reuse,
        "reuse_threshold": reuse_threshold,
        "merge": merge,
        "pool": pool,
        "recut": recut,
        "share": share,
    }
    config = _configuration(keep, target, _given(options))
    host = unwrap(model)
    plan = find_plan(host)
    state = _prepare(host, config, plan)
    sites = [Cut(*plan.entry), *_cuts(plan, state)]
    grafting = Grafting(host, sites)
    state.settle(host.get_submodule(plan.entry[0]))  # the last thing that can be refused
    state.presence = _presence(host, [site for site in sites if site.path in grafting.paths])
    grafting.apply(state, state.presence.missing)
    return model


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given; None says nothing where it is usual."""
    return {
        name: value
        for name, value in options.items()
        if not isinstance(value, _Usual)
        and (value is not None or getattr(PruneConfig, name) is not None)
    }


def _presence(host: nn.Module, sites: Sequence[Cut]) -> Presence:
    """What every pass looks at first; the entry comes first among the sites."""
    needed = [s for s in sites if s.path and getattr(s.behaviour, "needed", True)]
    may_end = [site.path for site in needed if isinstance(site.stage, int)]
    return Presence(host, sites[0].path, [site.path for site in needed], may_end)


def _configuration(
    keep: float | str | os.PathLike[str] | PruneConfig,
    target: float | None,
    given: dict[str, Any],
) -> PruneConfig:
    """What was asked for: the options given, or a configuration but for these."""
    if keep == "auto":
        keep = 0.5 if target is None else check_keep(target)
        if "share" not in given:
            wanted = PruneConfig(keep, **given)
            usual = wanted.proposal_size is None and wanted.score == PruneConfig.score
            share = default_share(keep, wanted.proposal if usual else None)
            given = given | {"share": share}
    elif target is not None or "share" in given:
        raise ConfigError(
            f'expected target and share with keep="auto", got target={target!r}, '
            f"share={given.get('share')!r} and keep={keep!r}"
        )
    if isinstance(keep, os.PathLike) or (isinstance(keep, str) and keep.endswith(".json")):
        keep = PruneConfig.from_file(keep)
    if isinstance(keep, PruneConfig):
        return replace(keep, **given)
    return PruneConfig(keep, **given)  # type: ignore[arg-type]  # which refuses text


def _prepare(host: nn.Module, config: PruneConfig, plan: Plan) -> HostState:
    """Everything that can fail, before anything is changed."""
    proposal = as_proposal(config.proposal)
    facts = plan.facts
    if config.mean is not None:
        facts = replace(facts, mean=config.mean, std=config.std)
    if proposal.function is None and facts.channels != 3:
        raise UnsupportedModelError(
            f"cannot prune {type(host).__name__}: expected 3 input channels for the proposal "
            f"{proposal.name}, got {facts.channels}; give proposal=a callable pixels -> "
            "scores (B, h, w)"
        )
    if proposal.function is not None and config.proposal_size is not None:
        raise ConfigError(
            "expected no proposal_size for a callable, which gets the host's pixels as they are, "
            f"got {config.proposal_size!r}"
        )
    if config.score == "softcam":
        proposal.check_softcam(facts.tubelet)
    _check_options(host, config, plan)
    later = _check_later(host, config, plan)
    known = facts.mean is not None or proposal.mean is None
    if not known and not config.reference and config.keep < 1:
        warn_unknown_statistics(host, proposal)
    return HostState(config, proposal, facts, later)


def _check_later(host: nn.Module, config: PruneConfig, plan: Plan) -> dict[int, Step]:
    """What the host's blocks will do, by their numbers; refused where they cannot."""
    asked = [name for name in ("merge", "pool", "recut") if getattr(config, name)]
    if not asked:
        return {}
    if not plan.blocks or plan.block is None:
        raise ConfigError(
            f"expected no {asked[0]} for a {plan.family} with its blocks, got it: that is for "
            "timm's and torchvision's VisionTransformer and transformers' ViT, DeiT and DINOv2"
        )
    if config.recut and config.recut.by == "attention" and not plan.facts.class_token:
        raise ConfigError(
            f'expected recut by="shift" for {type(host).__name__}, got "attention": it has no '
            "class token that would attend"
        )
    if asked == ["pool"]:
        return {}
    found = steps(config.merge, config.recut, len(plan.blocks), config.keep < 1)
    apart = check_blocks(host, [plan.blocks[i] for i in found], plan.block)
    return {i: replace(step, bypassed=apart[plan.blocks[i]]) for i, step in found.items()}


def _check_options(host: nn.Module, config: PruneConfig, plan: Plan) -> None:
    """Refuse options that this host has no use for."""
    if config.share is not None:
        _check_budgets(host, plan)
    count = plan.facts.stages
    if config.stages is not None and max(config.stages) >= count:
        has = f"{count} stages, 0 to {count - 1}" if count else "no stages: its tokens drop once"
        raise ConfigError(
            f"expected stages that {type(host).__name__} has, got {config.stages}; it has {has}"
        )
    if config.attention == "kept" and plan.kept_attention is None:
        raise ConfigError(
            f'expected attention="dense" for a {plan.family}, got "kept": '
            "that is for Swin, whose attention goes by windows"
        )
    if config.attention == "kept" and config.keep < 1:
        check_kept(host, plan.kept_attention or ())
    if not plan.facts.tubelet and (config.score == "motion" or config.reuse > 1):
        raise ConfigError(
            f'expected score="significance" or "softcam" and reuse=1 for a {plan.family}, which '
            f"takes images, got score={config.score!r} and reuse={config.reuse}"
        )


def _check_budgets(host: nn.Module, plan: Plan) -> None:
    """Refuse budgets for each image where the host cannot have them."""
    if plan.facts.stages or plan.facts.tubelet:
        what = "takes clips" if plan.facts.tubelet else "keeps its grid dense"
        raise ConfigError(
            f"expected one keep for a {plan.family}, which {what}, got a budget for each image"
        )
    if hasattr(host, "text_model"):
        raise UnsupportedModelError(
            f"cannot give each image its budget in {type(host).__name__}, whose answers compare "
            "images with texts across the batch: prune its vision_model"
        )
    from papr.hosts.grouped import check_unsharded  # loads torch's compiler, which takes a second

    check_unsharded(host, ConfigError)


def _cuts(plan: Plan, state: HostState) -> list[Cut]:
    """The sites beyond the entry that this configuration grafts."""
    assert plan.block is not None or not state.steps
    steps = state.steps.values()
    blocks = [Cut(plan.blocks[s.block], plan.block, s) for s in steps]  # type: ignore[arg-type]
    if state.dense:
        return blocks
    kept_attention = state.config.attention == "kept" and plan.kept_attention is not None
    cuts = plan.kept_attention if kept_attention else plan.cuts
    assert cuts is not None
    root = []
    if state.config.share is not None:
        from papr.hosts.grouped import Grouped  # see above

        root = [Cut("", Grouped)]
    kept = [cut for cut in cuts if cut.stage is None or state.prunes(cut.stage)]
    return [*root, *kept, *blocks]


def unprune(model: Model) -> Model:
    """Give the model back as it was: same classes, same answers bit for bit.

    Does nothing to a model that is not pruned. Returns `model`.

    Raises:
        PrunedModelError: another library put something on top of the pruning (accelerate's hooks,
            weight_norm, fully_shard), which would be lost or left broken; the message says how it
            goes away. The model is as it was before the call.
    """
    ungraft(unwrap(model))
    return model


def is_pruned(model: nn.Module) -> bool:
    """Whether `papr.prune` is in force on the model (at keep=1 too)."""
    return bool(states(unwrap(model)))


def selection(model: nn.Module, stage: int | None = None) -> Selection | BudgetedSelection:
    """Which patches the last forward pass kept.

    Of this thread's last pass where it ran eagerly; of the last one to finish where it was
    compiled. Costs nothing until asked: the tensors stay on their device.

    Args:
        model: a pruned model.
        stage: of Swin and ConvNeXt, which stage's selection; None for the first pruned one.

    Returns:
        A `Selection`; a `BudgetedSelection` where each image has a budget of its own.

    Raises:
        SelectionError: the model is not pruned, has not run yet, was pruned with trace=False, or
            does not prune that stage.
    """
    found = states(unwrap(model))
    if not found:
        raise SelectionError(f"expected a pruned model, got a {type(model).__name__} that is not")
    state: HostState = found[0]
    return state.last(stage)


def supported(model: nn.Module) -> Support:
    """Whether `papr.prune` takes this model, and why not where it does not.

    Changes nothing and runs nothing. True or false in a condition; `.reason` says the rest.
    """
    try:
        plan = find_plan(unwrap(model))
        Grafting(unwrap(model), [Cut(*plan.entry), *plan.cuts])
    except PaprError as error:
        return Support(False, reason=str(error))
    return Support(True, family=plan.family)

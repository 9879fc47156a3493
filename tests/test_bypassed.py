"""What hangs on modules that papr takes apart acts, or is refused by name: never passed by."""

import copy
import threading

import pytest
import torch
from timm.utils.model import ActivationStatsHook
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

import papr
from papr.baselines import norm_scores
from papr.errors import PrunedModelError, UnsupportedModelError
from tiny import CASES

MERGE, RECUT = {"merge": papr.Merge(4)}, {"recut": papr.Recut(0.5, blocks=(1,))}
KEPT = {"attention": "kept"}

#: Host, what takes its block 1 apart, the module that is taken apart, and one that is called.
APART = {
    "augreg": ("augreg", MERGE, "blocks.1.attn", "blocks.1.attn.qkv"),
    "recut": ("augreg", RECUT, "blocks.1.attn", "blocks.1.mlp"),
    "torchvision": (
        "torchvision",
        MERGE,
        "encoder.layers.encoder_layer_1.self_attention",
        "encoder.layers.encoder_layer_1.mlp",
    ),
    "hf_vit": ("hf_vit_model", MERGE, "layers.1.attention", "layers.1"),
    "swin": ("swin", KEPT, "layers.1.blocks.1.attn", "layers.1.blocks.1.attn.proj"),
    "swin_v2": ("swin_v2", KEPT, "layers.1.blocks.1.attn", "layers.1.blocks.1"),
    "hf_swin_v2": (
        "hf_swin_v2",
        KEPT,
        "swinv2.encoder.layers.1.blocks.1.attention.self",
        "swinv2.encoder.layers.1.blocks.1.attention.self.query",
    ),
    "torchvision_swin": ("torchvision_swin", KEPT, None, "features.3.1.attn"),
}


def turned(module: nn.Module, args: object, output: object) -> object:
    """A hook that changes what it sees: outputs are tensors, or begin with one."""
    if isinstance(output, tuple):
        return (output[0].flip(-1), *output[1:])
    return output.flip(-1)


def _replace_forward(module: nn.Module) -> None:
    original = module.forward
    module.forward = lambda *args, **kwargs: original(*args, **kwargs)


HANGING = {
    "forward hook": lambda module: module.register_forward_hook(turned),
    "pre-hook": lambda module: module.register_forward_pre_hook(lambda m, args: None),
    "backward hook": lambda module: module.register_full_backward_hook(lambda m, i, o: None),
    "replaced forward": _replace_forward,
}


#: Everything on two hosts, a forward hook on the others.
REFUSED = [
    (name, thing)
    for name in APART
    for thing in HANGING
    if APART[name][2] and (name in ("augreg", "swin") or thing == "forward hook")
]


def logits(case, model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return case.logits(model, x)


@pytest.mark.parametrize(("name", "thing"), REFUSED)
def test_what_would_be_passed_by_is_refused_before_anything_is_changed(name, thing) -> None:
    host, options, path, _ = APART[name]
    case = CASES[host]
    model = case.build()
    HANGING[thing](model.get_submodule(path))
    what = "a (forward|backward) hook" if "hook" in thing else "a replaced forward"
    with pytest.raises(UnsupportedModelError, match=f"{what} on its .*would be passed by"):
        case.prune(model, 0.5, **options)
    assert not papr.is_pruned(model)


@pytest.mark.parametrize(("name", "thing"), REFUSED)
def test_what_is_hung_up_after_pruning_is_refused_in_the_next_pass(name, thing) -> None:
    host, options, path, _ = APART[name]
    case = CASES[host]
    model, x = case.prune(case.build(), 0.5, **options), case.pixels()
    expected = logits(case, model, x)
    handle = HANGING[thing](model.get_submodule(path))
    with pytest.raises(PrunedModelError, match=r"would be passed by.*papr.prune without"):
        case.logits(model, x)
    if handle is None:
        del model.get_submodule(path).forward
    else:
        handle.remove()
    assert torch.equal(logits(case, model, x), expected)


@pytest.mark.parametrize("name", APART)
def test_a_hook_on_what_is_called_acts(name: str) -> None:
    host, options, _, path = APART[name]
    case = CASES[host]
    model, x = case.prune(case.build(), 0.5, **options), case.pixels()
    plain = logits(case, model, x)
    model.get_submodule(path).register_forward_hook(turned)
    hooked = logits(case, model, x)
    assert (hooked - plain).abs().max() > 1e-4
    again = case.build()
    again.get_submodule(path).register_forward_hook(turned)
    assert torch.equal(logits(case, case.prune(again, 0.5, **options), x), hooked)


@pytest.mark.parametrize("name", ["augreg", "torchvision", "hf_vit", "swin_v2"])
def test_hooks_act_where_the_same_host_is_only_pruned(name: str) -> None:
    host, _, path, _ = APART[name]
    case = CASES[host]
    model, x = case.prune(case.build(), 0.5), case.pixels()
    plain = logits(case, model, x)
    model.get_submodule(path).register_forward_hook(turned)
    assert (logits(case, model, x) - plain).abs().max() > 1e-4


def _adapted(model: nn.Module) -> nn.Module:
    peft = pytest.importorskip("peft")
    return peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["self_attention"]), model)


def test_adapters_of_torchvisions_attention_are_refused_in_both_orders() -> None:
    case = CASES["torchvision"]
    adapted = _adapted(case.build())  # still zero: it changes no answer yet
    with pytest.raises(UnsupportedModelError, match=r"self_attention .*MultiheadAttention"):
        case.prune(adapted, 0.5, **MERGE)
    assert not papr.is_pruned(adapted)
    pruned = _adapted(case.prune(case.build(), 0.5, **MERGE))
    with pytest.raises(PrunedModelError, match=r"peft.*Attention in place of its self_a"):
        pruned(case.pixels())


@pytest.mark.parametrize("name", ["augreg", "swin"])
def test_wrappers_around_attention_are_refused(name: str) -> None:
    host, options, path, _ = APART[name]
    case = CASES[host]
    model = case.prune(case.build(), 0.5, **options)
    above, _, last = path.rpartition(".")
    setattr(model.get_submodule(above), last, checkpoint_wrapper(model.get_submodule(path)))
    with pytest.raises(PrunedModelError, match="CheckpointWrapper in place of its attn"):
        model(case.pixels())


@pytest.mark.parametrize("name", ["augreg", "swin"])
def test_compiled_code_refuses_what_hung_there_when_it_was_compiled(name: str) -> None:
    host, options, path, _ = APART[name]
    case = CASES[host]
    model, x = case.prune(case.build(), 0.5, **options), case.pixels()
    torch.compiler.reset()
    model.get_submodule(path).register_forward_hook(turned)
    with torch.no_grad(), pytest.raises(PrunedModelError, match="would be passed by"):
        torch.compile(model, backend="eager")(x)


def test_hooks_see_no_tokens_of_papr_s_own() -> None:
    case = CASES["augreg"]
    model = case.build()
    seen: list[object] = []
    for path in ("blocks.1", "blocks.1.mlp"):
        model.get_submodule(path).register_forward_hook(lambda *args: seen.append(args))
    case.prune(model, 0.5, **MERGE)
    assert not seen


@pytest.mark.parametrize("fused", [True, False])
def test_parts_that_only_a_switch_calls_are_looked_at_too(fused: bool) -> None:
    case = CASES["augreg"]
    model = case.build()
    for block in model.blocks:
        block.attn.fused_attn = fused  # off: attention calls its attn_drop
    case.prune(model, 0.5, **MERGE)
    if fused:
        model.blocks[1].attn.attn_drop = nn.Identity()  # nothing hangs there
    model.train()(case.pixels())
    model.eval().blocks[1].attn.fused_attn = False
    model.blocks[1].attn.attn_drop.register_forward_hook(turned)
    with pytest.raises(PrunedModelError, match=r"a forward hook on its attn\.attn_drop"):
        model(case.pixels())


def test_hooks_that_the_host_s_library_offers_its_users_are_users_hooks() -> None:
    case = CASES["augreg"]
    model = case.prune(case.build(), 0.5, **MERGE)
    ActivationStatsHook(model, hook_fn_locs=["blocks.1.attn"], hook_fns=[turned])
    with pytest.raises(PrunedModelError, match="a forward hook on its attn"):
        model(case.pixels())


@pytest.mark.parametrize("early", [True, False])
@torch.no_grad()
def test_attentions_that_the_configuration_asks_for_are_refused(early: bool) -> None:
    case = CASES["hf_vit"]
    model = case.build(attn="eager")
    model.config.output_attentions = early
    case.prune(model, 0.5, **MERGE)
    model.config.output_attentions = True
    with pytest.raises(PrunedModelError, match="no attentions asked for"):
        model(case.pixels())
    model.config.output_attentions = False
    assert case.logits(model, case.pixels()).isfinite().all()


def test_a_block_that_does_not_say_how_wide_its_tokens_are_is_refused_in_one_line() -> None:
    case = CASES["augreg"]
    model = case.build()
    for block in model.blocks:
        block.norm1, block.norm2 = (nn.LayerNorm(48, elementwise_affine=False) for _ in range(2))
        for linear in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2):
            linear.bias = None
    with pytest.raises(UnsupportedModelError, match="expected a parameter of one axis") as caught:
        case.prune(model, 0.5, **MERGE)
    assert "\n" not in str(caught.value)
    assert not papr.is_pruned(model)


@pytest.mark.parametrize("register", ["register_forward_hook", "register_full_backward_hook"])
def test_hooks_that_cannot_be_copied_are_no_hindrance_on_a_whole_block(register: str) -> None:
    class Counter:
        def __init__(self) -> None:
            self.lock, self.calls = threading.Lock(), 0

        def count(self, *args: object) -> None:
            self.calls += 1

    case, counter = CASES["augreg"], Counter()
    model, x = case.build(), case.pixels()
    getattr(model.blocks[1], register)(counter.count)
    case.prune(model, 0.5, **MERGE)
    assert counter.calls == 0
    model(x).sum().backward()
    assert counter.calls == 1


def test_blocks_without_weights_in_memory_are_not_tried() -> None:
    case = CASES["augreg"]
    model = case.build().to("meta")
    with pytest.raises(UnsupportedModelError, match=r"weights in memory .*meta") as caught:
        case.prune(model, 0.5, **MERGE)
    assert "leaves" not in str(caught.value)
    assert not papr.is_pruned(model)


def test_copies_of_such_a_host_refuse_too() -> None:
    case = CASES["augreg"]
    model = copy.deepcopy(case.prune(case.build(), 0.5, **MERGE))
    model.blocks[1].attn.register_forward_hook(turned)
    with pytest.raises(PrunedModelError, match="would be passed by"):
        model(case.pixels())


@torch.no_grad()
def test_overheard_tokens_are_those_that_hooks_leave() -> None:
    """Of a host whose tokens are cut where they are made, the norm ranks what comes out there."""
    case = CASES["hf_vit_model"]
    model, x = case.build(), case.pixels()
    scores = norm_scores(model)(x)
    model.embeddings.register_forward_hook(lambda m, args, tokens: tokens * 2)
    assert torch.allclose(norm_scores(model)(x), scores * 2)

"""PruneConfig: checked when made, JSON there and back."""

import dataclasses
from pathlib import Path

import pytest
import torch

import papr
from papr.errors import ConfigError
from tiny import CASES

HALF = (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    "config",
    [
        papr.PruneConfig(),
        papr.PruneConfig(keep=1),
        papr.PruneConfig(0.3, "mobileone_s0", (128, 160), True, trace=False),
        papr.PruneConfig(1, merge=papr.Merge([8, 0, 4], start=0.25, proportional=False)),
        papr.PruneConfig(0.4, proposal_size=96, merge=papr.Merge(8, inflection=-1.0)),
        papr.PruneConfig(proposal_size="input", mean=[0.5, 0.5, 0.5], std=(0.1, 0.2, 1)),
    ],
)
def test_json_round_trip(config: papr.PruneConfig) -> None:
    again = papr.PruneConfig.from_json(config.to_json())
    assert again == config
    assert again.to_json() == config.to_json()


def test_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        papr.PruneConfig().keep = 0.3  # type: ignore[misc]


@pytest.mark.parametrize("keep", [0, -0.1, 1.01, float("nan"), "0.5", None, True])
def test_keep(keep: object) -> None:
    with pytest.raises(ConfigError, match="expected 0 < keep <= 1, got"):
        papr.PruneConfig(keep)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"proposal": 3}, "expected proposal to be a name, an nn.Module"),
        ({"proposal_size": 0}, "expected proposal_size to be None"),
        ({"proposal_size": (224,)}, "expected proposal_size"),
        ({"proposal_size": "big"}, "expected proposal_size"),
        ({"reference": 1}, "expected reference to be True or False, got 1"),
        ({"trace": "yes"}, "expected trace to be True or False"),
        ({"mean": (0, 0, 0)}, "mean and std together"),
        ({"mean": (0, 0), "std": (1, 1, 1)}, "expected mean to be three numbers"),
        ({"mean": (0, 0, 0), "std": (1, 0, 1)}, "expected std above 0"),
    ],
)
def test_other_options(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        papr.PruneConfig(**options)


def test_bad_json() -> None:
    with pytest.raises(ConfigError, match="not JSON"):
        papr.PruneConfig.from_json("{keep")
    with pytest.raises(ConfigError, match="JSON object, got list"):
        papr.PruneConfig.from_json("[]")
    with pytest.raises(ConfigError, match=r"expected keys among keep,.*got ratio"):
        papr.PruneConfig.from_json('{"ratio": 0.5}')
    with pytest.raises(ConfigError, match="given by name"):
        papr.PruneConfig(proposal=torch.nn.Identity()).to_json()


def test_prune_reads_a_stored_configuration(tmp_path: Path) -> None:
    case = CASES["augreg"]
    config = papr.PruneConfig(0.25, proposal_size=48, merge=papr.Merge(4), mean=HALF, std=HALF)
    stored = tmp_path / "chosen.json"
    stored.write_text(config.to_json())
    pixels = case.pixels(2)
    with torch.no_grad():
        wanted = papr.prune(case.build(), config)(pixels)
        for keep in (stored, str(stored)):
            model = papr.prune(case.build(), keep)
            assert torch.equal(model(pixels), wanted)
            assert papr.selection(model).mask().sum() == 2 * 16


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read .*chosen.json: FileNotFoundError"),
        ("{keep", "expected a configuration in .*chosen.json: .*not JSON"),
        ('{"keep": 0.5, "merge": {"r": -1}}', "chosen.json: expected merge r"),
        ('{"keep": 0.5, "merge": {"speed": 1}}', "chosen.json: expected keys of Merge"),
    ],
)
def test_a_file_that_holds_none_is_named(tmp_path: Path, content: str, message: str) -> None:
    model, path = CASES["augreg"].build(depth=1), tmp_path / "chosen.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        papr.prune(model, path)
    assert "\n" not in str(caught.value)
    assert not papr.is_pruned(model)


def test_configurations_hold_nothing_that_can_be_changed() -> None:
    """A list is taken as a tuple: equal, hashable, and not the caller's own."""
    counts, blocks, stages = [8, 4], [3, 1], [1, 0]
    config = papr.PruneConfig(
        0.5,
        proposal_size=[64, 96],
        mean=[0.5, 0.5, 0.5],
        std=[0.5, 0.5, 0.5],
        stages=stages,
        merge=papr.Merge(counts),
        recut=papr.Recut(blocks=blocks),
    )
    same = papr.PruneConfig.from_json(config.to_json())
    counts.append(1)
    blocks.clear()
    stages.clear()
    assert config == same
    assert hash(config) == hash(same)
    assert (config.merge.r, config.recut.blocks, config.stages) == ((8, 4), (1, 3), (0, 1))
    assert papr.Merge((4, 1)) == papr.Merge([4, 1])
    assert hash(papr.PruneConfig(merge=papr.Merge(8))) != hash(config)


def test_stored_merging_is_read_as_it_was_meant() -> None:
    """Files of before, in which r is a number or a list whatever it was given as."""
    found = papr.PruneConfig.from_dict({"merge": {"r": 8, "inflection": -1.0}})
    assert found.merge == papr.Merge(8, inflection=-1.0)
    assert papr.PruneConfig.from_dict({"merge": {"r": [4, 1]}}).merge.counts(3) == [4, 1, 0]

"""PruneConfig: checked when made, JSON there and back."""

import dataclasses

import pytest
import torch

import papr
from papr.errors import ConfigError


@pytest.mark.parametrize(
    "config",
    [
        papr.PruneConfig(),
        papr.PruneConfig(keep=1),
        papr.PruneConfig(0.3, "mobileone_s0", (128, 160), True, trace=False),
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

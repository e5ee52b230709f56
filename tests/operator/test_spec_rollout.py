"""How many groups a rollout may add and take, from numbers and percentages."""

import pytest
from pydantic import ValidationError

from m3_operator.spec.rollout import RolloutSpec


@pytest.mark.parametrize(
    ("spec", "wanted", "surge", "unavailable"),
    [
        ({}, 5, 0, 1),
        ({"maxUnavailable": 3}, 5, 0, 3),
        ({"maxUnavailable": "50%"}, 5, 0, 2),
        ({"maxUnavailable": "10%"}, 5, 0, 1),  # rounded down to none, and then nothing could move
        ({"strategy": "Surge"}, 5, 1, 0),
        ({"strategy": "Surge", "maxSurge": "25%"}, 5, 2, 0),
        ({"strategy": "Surge", "maxSurge": "100%", "maxUnavailable": 1}, 5, 5, 1),
        ({"strategy": "Surge", "maxSurge": 0, "maxUnavailable": "20%"}, 5, 0, 1),
        ({"strategy": "Surge", "maxSurge": "25%", "maxUnavailable": "25%"}, 3, 1, 0),
        ({"strategy": "Recreate"}, 5, 0, 1),
    ],
)
def test_shares_become_groups(spec: dict[str, object], wanted: int, surge: int, unavailable: int) -> None:
    rollout = RolloutSpec.model_validate(spec)
    assert (rollout.surge_groups(wanted), rollout.unavailable_groups(wanted)) == (surge, unavailable)


@pytest.mark.parametrize("share", ["101%", "-1%", "1", "1.5%", "01%", -1, 1001, True, 1.0])
def test_what_is_no_share_is_refused(share: object) -> None:
    with pytest.raises(ValidationError):
        RolloutSpec.model_validate({"maxUnavailable": share})

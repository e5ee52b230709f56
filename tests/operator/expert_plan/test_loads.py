"""What experts are asked to do lately, from counters: worked by hand."""

import pytest

from m3_operator.expert_plan.loads import LoadAverage, blend
from m3_operator.expert_plan.plan import ExpertPlanError


def test_the_first_reading_says_only_where_counting_starts() -> None:
    average = LoadAverage.over_window(60).after([[5, 7]], now_seconds=1000)

    assert average.tokens == ((0, 0),)


def test_half_a_window_ago_counts_half() -> None:
    average = LoadAverage.over_window(60).after([[0, 0]], 0).after([[100, 20]], 60)
    assert average.tokens == ((100, 20),)

    average = average.after([[100, 50]], 90)
    assert average.tokens == ((50, 40),)

    average = average.after([[100, 50]], 150)
    assert average.tokens == ((12.5, 10),)


def test_a_time_without_requests_changes_no_proportions() -> None:
    before = LoadAverage.over_window(60).after([[0, 0]], 0).after([[90, 30]], 60)

    after = before.after([[90, 30]], 600)

    assert after.tokens[0][0] / after.tokens[0][1] == pytest.approx(3)


def test_counters_that_began_anew_count_from_nothing() -> None:
    # The second counter is above its last reading already: what tells is that the first is below.
    average = LoadAverage.over_window(60).after([[100], [100]], 0).after([[90], [110]], 30)

    assert average.tokens == ((90,), (110,))


@pytest.mark.parametrize(
    ("counters", "at", "said"),
    [
        ([[1, 2, 3]], 60, "other layers or experts"),
        ([[1, 2], [1, 2]], 60, "other layers or experts"),
        ([[1, 2]], 29, r"counters of 29 s: the last were of 30 s"),
    ],
)
def test_readings_that_do_not_follow_are_refused(counters: list[list[int]], at: float, said: str) -> None:
    average = LoadAverage.over_window(60).after([[1, 2]], 30)

    with pytest.raises(ExpertPlanError, match=said):
        average.after(counters, at)


def test_a_window_must_have_a_length() -> None:
    with pytest.raises(ExpertPlanError, match="half-life is 0"):
        LoadAverage.over_window(0)


def test_phases_count_by_their_time_and_not_by_their_tokens() -> None:
    prefill, decode = [[600.0, 300.0]], [[10.0, 90.0]]

    # Of 1000 tokens prefill gets a quarter, split 2 to 1; decode the rest, split 1 to 9.
    (blended,) = blend([(prefill, 1), (decode, 3)])

    assert blended == pytest.approx((250 * 2 / 3 + 75, 250 / 3 + 675))


def test_a_phase_without_tokens_in_a_layer_is_left_out() -> None:
    assert blend([([[6, 2], [0, 0]], 1), ([[0, 0], [0, 0]], 1)]) == ((6, 2), (0, 0))


def test_loads_that_cannot_be_blended_are_refused() -> None:
    with pytest.raises(ExpertPlanError, match="different layers or experts"):
        blend([([[1.0]], 1), ([[1.0, 2.0]], 1)])
    with pytest.raises(ExpertPlanError, match="must not be negative"):
        blend([([[1.0]], -1)])

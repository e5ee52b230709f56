"""Which rank has been silent for how long."""

from m3_worker.ranks.pulse import Silence


def test_a_rank_whose_count_changes_is_not_silent() -> None:
    silence = Silence(10)
    assert silence.longest({1: b"0", 2: b"0"}, 100.0)[1] == 0
    assert silence.longest({1: b"1", 2: b"1"}, 105.0)[1] == 0


def test_a_rank_whose_count_stays_is_silent_since_it_last_changed() -> None:
    silence = Silence(10)
    silence.longest({1: b"0", 2: b"0"}, 100.0)
    silence.longest({1: b"1", 2: b"1"}, 101.0)
    assert silence.longest({1: b"2", 2: b"1"}, 104.0) == (2, 3.0)
    assert silence.longest({1: b"3", 2: b"2"}, 105.0)[1] == 0

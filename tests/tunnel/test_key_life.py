"""A key serves for a time and a volume, whichever ends first."""

from pilot.tunnel.key_life import MAX_AGE_S, MAX_BYTES, KeyLife


def test_age_and_volume_each_end_it() -> None:
    life = KeyLife(1000.0, 50)
    assert not life.over(1000.0 + MAX_AGE_S - 1, 50 + MAX_BYTES - 1)
    assert life.over(1000.0 + MAX_AGE_S, 50)
    assert life.over(1000.0, 50 + MAX_BYTES)
    life.renew(5000.0, MAX_BYTES)
    assert not life.over(5001.0, MAX_BYTES + 50) and life.over(5001.0, 2 * MAX_BYTES)

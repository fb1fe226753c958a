"""How fast a run is."""

import numpy as np
import pytest

from rljax.run import pace


def test_pace_by_hand():
    # Two steps per dispatch: compiled until second 10, then 4 seconds each. After
    # step 4 a pause of 6. The first dispatch must not count in what is left, the
    # pause must: 20 steps left at (18 - 10 + 6) / 4 steps = 70, not 100 or 40.
    now = [0.0]
    speed = pace.Pace(lambda: now[0])
    assert speed.seconds_left(0, 26) is None
    now[0] = 10.0
    np.testing.assert_allclose(speed.dispatch(2, 2), [5, 10])
    assert speed.seconds_left(2, 26) is None
    now[0] = 14.0
    np.testing.assert_allclose(speed.dispatch(4, 2), [12, 14])
    now[0] = 20.0
    speed.restart()
    now[0] = 24.0
    np.testing.assert_allclose(speed.dispatch(6, 2), [22, 24])
    assert speed.seconds_left(6, 26) == pytest.approx(70.0)


def test_tokens_per_second_are_those_of_the_whole_dispatch():
    counted = {"samples/tokens": np.array([10.0, 30.0])}
    assert pace.tokens_per_second(counted, 4.0) == pytest.approx(10.0)
    assert pace.tokens_per_second({}, 4.0) is None

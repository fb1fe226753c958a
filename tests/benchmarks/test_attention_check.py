"""The check of attention kernels passes what is right and tells what is not."""

import functools

from benchmarks import attention_check
from rljax.model.attention import attend_causally
from rljax.model.attention_blocks import attend_in_blocks
from rljax.model.attention_cudnn import attend_by_cudnn

CASE = (20, 7, {"window": 5})


def test_what_is_right_passes(capsys):
    assert attention_check.check(attend_in_blocks, CASE) == ""
    stand_in = functools.partial(attend_by_cudnn, implementation="xla")
    assert attention_check.check(stand_in, CASE) == ""
    assert "20 tokens after 7, {'window': 5}: errors" in capsys.readouterr().out


def test_a_window_of_one_more_is_found():
    def wrong(*arrays, window):
        return attend_causally(*arrays, window=window + 1)

    assert "20 tokens after 7" in attention_check.check(wrong, CASE)

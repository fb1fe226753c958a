"""Python verifiers: verdicts from a pool."""

import logging

import jax
import numpy as np
import pytest
import verify_fakes
import worker_fakes

from rljax.verify import exact, pooled

BYTES = verify_fakes.BYTES


@pytest.fixture(scope="module")
def verify():
    with pooled(
        worker_fakes.misbehave, BYTES, num_workers=2, timeout_s=1.0
    ) as verifier:
        yield verifier


def test_verdicts_have_one_row_per_prompt(verify):
    some = verify_fakes.saying([[b"1", b"2", b"3"], [b"1", b"2", b"3"]])
    verdict = verify(verify_fakes.asking(["2", "3"]), some)
    # Answers repeated along the wrong axis would give other places.
    assert verdict.reward.tolist() == [[0, 1, 0], [0, 0, 1]]
    assert verdict.correct.tolist() == [[False, True, False], [False, False, True]]
    assert not verdict.failed.any()
    assert verdict.reward.dtype == np.float32


def test_failures_are_marked_counted_and_said(verify, caplog):
    some = verify_fakes.saying([[b"hang", b"x", b"raise"], [b"exit", b"y", b"raise"]])
    with caplog.at_level(logging.WARNING):
        verdict = verify(verify_fakes.asking(["x", "x"]), some)
    assert verdict.failed.tolist() == [[True, False, True], [True, False, True]]
    assert verdict.reward.tolist() == [[0, 1, 0], [0, 0, 0]]
    assert verdict.correct.tolist() == [[False, True, False], [False, False, False]]
    (record,) = caplog.records
    assert "4 of 6 verifications failed (2 raised" in record.getMessage()


def test_the_function_reads_masked_text_up_to_the_end_token(verify):
    some = verify_fakes.saying([[b"a-b", "né".encode(), b"\xff", b""]])
    some = some.replace(mask=some.mask.at[0, 0, 1].set(False))
    answers = ["ab", "né", "\ufffd", ""]
    for g, answer in enumerate(answers):
        verdict = verify(verify_fakes.asking([answer]), some)
        assert verdict.correct[0].tolist() == [g == i for i in range(4)]


def test_host_and_graph_give_the_same_verdicts(verify):
    prompts, some = verify_fakes.asking(["a", "b"]), [[b"a", b"b", b"c"]] * 2
    want = jax.jit(exact(BYTES, strip=b""))(prompts, verify_fakes.saying(some))
    got = verify(prompts, verify_fakes.saying(some))
    for field in ("reward", "correct", "failed"):
        np.testing.assert_array_equal(getattr(got, field), getattr(want, field))


def upper(tokens, mask) -> list[str]:
    assert tokens.shape == mask.shape == (4, 3)
    return ["0.25", "0.5", "1.0", "2.0"]


def test_decoder_and_threshold_can_be_chosen():
    some = verify_fakes.saying([[b"aa", b"bb"]] * 2)
    with pooled(
        worker_fakes.fraction, upper, num_workers=1, timeout_s=5.0, correct_at=0.5
    ) as verifier:
        verdict = verifier(verify_fakes.asking(["x", "y"]), some)
    assert verdict.reward.tolist() == [[0.25, 0.5], [1.0, 2.0]]
    assert verdict.correct.tolist() == [[False, True], [True, True]]


def unlike(value):
    return lambda tokens, mask: value


@pytest.mark.parametrize(
    ("texts", "got"),
    [
        (["0.5"] * 3, "list of 3 str"),
        ([b"0.5"] * 4, "list of 4 bytes"),
        (["0.5", None, "1", b"2"], "list of 4 NoneType and bytes and str"),
        ("0.50", "str"),
        (None, "NoneType"),
        (np.zeros(4), "ndarray"),
    ],
)
def test_a_decoder_that_returns_anything_but_texts_is_refused(texts, got):
    # A string would be taken for its characters, one for each sample.
    some = verify_fakes.saying([[b"aa", b"bb"]] * 2)
    with (
        pooled(
            worker_fakes.same, unlike(texts), num_workers=1, timeout_s=5.0
        ) as verifier,
        pytest.raises(ValueError, match=f"must return a list of 4 str.* got {got} "),
    ):
        verifier(verify_fakes.asking(["x", "y"]), some)


def test_prompts_without_answers_are_refused_by_name(verify):
    prompts = verify_fakes.asking(["x"])
    some = verify_fakes.saying([[b"x"]])
    with pytest.raises(ValueError, match=r"prompts\.data must hold 'answer'"):
        verify(prompts.replace(data={}), some)
    with pytest.raises(ValueError, match=r"must be u8\[P, A\].*int32 of shape \(1,\)"):
        verify(prompts.replace(data={"answer": np.zeros(1, np.int32)}), some)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"correct_at": float("nan")}, "correct_at must lie in"),
        ({"decode": "utf-8"}, "decode must be the bytes of each token or a function"),
    ],
)
def test_arguments_out_of_range_are_refused(changes, message):
    # No reward is at least NaN: pass rates would be 0 throughout.
    arguments = {"decode": BYTES, "num_workers": 1, "timeout_s": 1.0} | changes
    with pytest.raises(ValueError, match=message):
        pooled(worker_fakes.same, **arguments).__enter__()

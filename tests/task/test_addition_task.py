"""The addition task: exact strings, slips, honest splits."""

import functools

import numpy as np
import pytest

from rljax import data
from rljax.data import tokenizer
from rljax.task import addition as task

TOKENIZER = task.tokenizer()


def one(a: int, b: int, digits: int = 3):
    return task.problems(np.array([a]), np.array([b]), digits=digits)


def text(tokens, mask=None) -> str:
    return TOKENIZER.decode(tokens if mask is None else tokens[mask])


def completion(prompts, forget: float, seed: int = 0) -> str:
    got = task.demonstrate(prompts, np.random.default_rng(seed), forget).data
    return text(got["completion"][0], got["completion_mask"][0])


def all_operands(digits: int = 3) -> np.ndarray:
    return np.arange(10 ** (digits - 1), 10**digits)


def test_a_prompt_by_hand():
    got = one(718, 678)
    assert text(got.tokens[0]) == "718+678="
    assert (got.length.tolist(), got.id.tolist()) == ([8], [718678])
    assert bytes(got.data["answer"][0]) == b"1396"
    assert bytes(one(123, 456).data["answer"][0]) == b"579\0"
    assert {x.dtype for x in (got.tokens, got.length, got.id)} == {np.dtype("int32")}
    assert got.data["answer"].dtype == np.uint8


@pytest.mark.parametrize(
    ("a", "b", "carries", "right", "careless"),
    [
        # From the right: 8+8=16, 1+7+1=09, 7+6=13; forgotten: 1+7=08.
        (718, 678, 1, "160913=1396", "160813=1386"),
        # A carry that is due with or without the one before: 5+5=10, 5+5=10, 5+4=09.
        (555, 455, 2, "101110=1010", "101009=900"),
        # The first slip takes away the cause of the second carry: 9+0=09, 1+2=03.
        (195, 205, 2, "101004=400", "100903=390"),
        # No inner carry, nothing to forget; the last carry is never forgotten.
        (900, 900, 0, "000018=1800", "000018=1800"),
        (100, 899, 0, "090909=999", "090909=999"),
        (999, 999, 2, "181919=1998", "181818=1888"),
    ],
)
def test_demonstrations_by_hand(a, b, carries, right, careless):
    prompts = one(a, b)
    assert prompts.data["carries"].tolist() == [carries]
    assert completion(prompts, forget=0.0) == right + "<end>"
    assert completion(prompts, forget=1.0) == careless + "<end>"


@pytest.mark.parametrize(
    ("a", "b", "right"),
    [(95, 17, "1211=112"), (10, 20, "0003=30")],
)
def test_two_digits_by_hand(a, b, right):
    assert completion(one(a, b, 2), forget=0.0) == right + "<end>"


def test_four_digits_by_hand():
    # 6+8=14, 1+7+1=09, 7+6=13, 2+9+1=12.
    prompts = one(2716, 9678, 4)
    assert completion(prompts, forget=0.0) == "14091312=12394<end>"
    assert (text(prompts.tokens[0]), prompts.id[0]) == ("2716+9678=", 27169678)


def test_every_right_demonstration_says_the_sum_and_pads_with_padding():
    a, b = np.random.default_rng(0).integers(100, 1000, size=(2, 2000))
    prompts = task.demonstrate(task.problems(a, b), np.random.default_rng(1), 0.0)
    tokens, mask = prompts.data["completion"], prompts.data["completion_mask"]
    assert tokens.dtype == np.int32 and mask.dtype == bool
    for i in range(len(a)):
        answer = text(tokens[i], mask[i]).split("=")[1]
        assert answer == f"{a[i] + b[i]}<end>"
        assert (
            bytes(prompts.data["answer"][i]).rstrip(b"\0") == f"{a[i] + b[i]}".encode()
        )
    assert np.all(tokens[~mask] == TOKENIZER.pad_token_id)


def test_working_and_answer_agree_with_each_other_also_in_slips():
    a, b = np.random.default_rng(0).integers(100, 1000, size=(2, 500))
    prompts = task.demonstrate(task.problems(a, b), np.random.default_rng(1))
    tokens, mask = prompts.data["completion"], prompts.data["completion_mask"]
    for i in range(len(a)):
        working, answer = text(tokens[i], mask[i]).split("=")
        low, middle, last = int(working[:2]), int(working[2:4]), int(working[4:])
        assert answer == f"{last}{middle % 10}{low % 10}<end>"


def test_the_share_of_right_demonstrations():
    pool = np.stack(np.meshgrid(all_operands(), all_operands()), -1).reshape(-1, 2)
    prompts = task.problems(*pool.T)
    # Over all 810 000 ordered pairs a digit below the first is uniform: no carry
    # .55 * .55, two .45 * .55, one the rest .45; .3025 + .45 * .3 + .2475 * .09.
    shares = np.bincount(prompts.data["carries"]) / len(pool)
    np.testing.assert_allclose(shares, [0.3025, 0.45, 0.2475], atol=1e-12)
    assert task.imitation_ceiling(prompts, 0.7) == pytest.approx(0.459775, abs=1e-9)
    assert task.imitation_ceiling(prompts, 1.0) == pytest.approx(0.3025, abs=1e-9)
    # Drawn: 4 standard errors of 810 000 draws are .0022. Drawing one slip for the
    # whole demonstration would give .3025 + .6975 * .3 = .512.
    drawn = task.is_right(task.demonstrate(prompts, np.random.default_rng(0), 0.7))
    assert drawn.mean() == pytest.approx(0.459775, abs=0.0022)


def test_forget_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"probability, got 1\.5"):
        task.demonstrate(one(718, 678), np.random.default_rng(0), 1.5)


def test_no_unordered_pair_is_in_two_splits_or_twice_in_one():
    splits = task.splits()
    assert [len(s.id) for s in splits] == [198_976, 1024, 1024]
    ids = np.concatenate([s.id for s in splits])
    pairs = np.sort(np.stack(np.divmod(ids, 1000)), axis=0)
    # Ordered pairs drawn without this care leave 24 % of the held-out problems with
    # their mirror in train.
    assert len(np.unique(pairs, axis=1).T) == len(ids)
    # Golden: figures of different dates are comparable only on the same held-out set.
    assert splits.test.id[:3].tolist() == [109745, 150284, 371798]
    carries = np.bincount(splits.test.data["carries"]) / 1024
    np.testing.assert_allclose(carries, [0.31, 0.43, 0.26], atol=0.05)


def test_all_pairs_can_be_drawn_in_both_orders():
    # 90 operands have 90 * 91 / 2 = 4095 unordered pairs; take every one.
    splits = task.splits(digits=2, num_train=4000, num_validation=50, num_test=45)
    a, b = np.divmod(np.concatenate([s.id for s in splits]), 100)
    want = {(x, y) for x in range(10, 100) for y in range(10, x + 1)}
    assert {(max(p), min(p)) for p in zip(a.tolist(), b.tolist(), strict=True)} == want
    # Half of the 4005 unequal ones each way, give or take 4 standard errors.
    assert abs(np.sum(a < b) - 4005 / 2) < 4 * np.sqrt(4005) / 2


def test_splits_are_determined_by_the_seed():
    sizes = {"num_train": 500, "num_validation": 100, "num_test": 100}
    first, again, other = (task.splits(seed, **sizes) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.test.id, again.test.id)
    assert not np.array_equal(first.test.id, other.test.id)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"digits": 5}, "digits must be 2, 3 or 4, got 5"),
        ({"digits": 2}, "at most 4095"),
        ({"num_test": 0}, "needs a problem"),
    ],
)
def test_impossible_splits_are_refused(options, told):
    with pytest.raises(ValueError, match=told):
        task.splits(**options)


def test_operands_of_another_width_are_refused():
    with pytest.raises(
        ValueError, match="exactly 3 digits, got numbers from 99 to 100"
    ):
        one(99, 100)


def test_token_ids_are_those_of_the_tokenizer(tmp_path):
    TOKENIZER.save_pretrained(tmp_path)
    loaded = tokenizer.load_tokenizer(tmp_path)
    assert len(loaded) == 14
    assert loaded("718+678=")["input_ids"] == one(718, 678).tokens[0].tolist()


def test_the_stream_shows_fresh_demonstrations_of_the_same_problem():
    # 999 + 999 alone: four different completions, drawn anew at each step.
    stream = data.stream(
        one(999, 999),
        num_prompts=1,
        steps_per_dispatch=50,
        seed=0,
        map_fn=functools.partial(task.demonstrate, forget=0.5),
    )
    got = next(stream)
    assert got.data["completion"].shape == (50, 1, 12)
    assert task.is_right(got).shape == (50, 1)
    seen = {text(c[0]) for c in got.data["completion"]}
    want = {"181919=1998", "181918=1898", "181819=1988", "181818=1888"}
    assert seen == {w + "<end>" for w in want}

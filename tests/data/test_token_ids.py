"""Every id that a run can meet has a row in the embedding, or is named before it."""

import functools

import fakes
import jax
import numpy as np
import pytest

from rljax import check, data
from rljax.data import token_ids, tokenizer
from rljax.rollout import sample

LETTERS = tokenizer.character_tokenizer("abc")  # ids 0 to 4


def encoded():
    problems = [data.Problem("ab", "1", "c"), data.Problem("c", "2", "ba")]
    return data.encode_prompts(problems, LETTERS, 3, max_completion_tokens=4)[0]


def test_what_a_tokenizer_encodes_has_a_row_and_more_rows_do_no_harm():
    for vocab_size in (5, 6, 1000):  # models have more rows than tokens
        token_ids.check_tokenizer(LETTERS, vocab_size)
        token_ids.check_prompts(encoded(), vocab_size)
        check.stop_tokens((1, np.int32(4)), vocab_size)


def test_a_tokenizer_with_one_token_too_many_is_named_with_the_token():
    with pytest.raises(
        ValueError, match=r"at most vocab_size=4 tokens, got 5.*'c' \(4"
    ):
        token_ids.check_tokenizer(LETTERS, 4)
    more = tokenizer.character_tokenizer("abc")
    more.add_special_tokens({"pad_token": "[PAD]"})  # the usual way to come to one
    with pytest.raises(ValueError, match=r"got 6.*no row for '\[PAD\]' \(5\)"):
        token_ids.check_tokenizer(more, 5)


def test_ids_with_gaps_are_not_counted_but_compared():
    class Gaps:
        """Three tokens, of ids up to 7: not more than rows, and yet one too high."""

        def get_vocab(self):
            return {"a": 0, "b": 3, "c": 7}

    token_ids.check_tokenizer(Gaps(), 8)
    with pytest.raises(ValueError, match=r"no row for 'c' \(7\)"):
        token_ids.check_tokenizer(Gaps(), 7)


@pytest.mark.parametrize("stop", [-1, 5, 2**40, 1.0, "1", None, True])
def test_an_end_token_without_a_row_is_refused(stop):
    with pytest.raises(
        ValueError, match=r"here: an end token must be an id in \[0, 5\)"
    ):
        check.stop_tokens((1, stop), 5, "here")


def test_a_sampler_refuses_it_when_traced():
    # No completion could end with it, and 1.5 would silently be 1.
    policy = fakes.bandit(1, 3, 5)
    params, key = policy.init(None), jax.random.key(0)
    draw = functools.partial(sample.sampler, policy, num_samples=2, max_tokens=2)
    with pytest.raises(ValueError, match=r"stop_tokens: an end token .*, got 5;"):
        draw(stop_tokens=(1, 5))(params, fakes.prompts(1), key)


def put(prompts, name, place, token):
    """The prompts with one token changed, in `tokens` or in an array of `data`."""
    array = np.array(prompts.tokens if name == "prompts" else prompts.data[name])
    array[place] = token
    if name == "prompts":
        return prompts.replace(tokens=array)
    return prompts.replace(data={**prompts.data, name: array})


def whole():
    """Prompts that carry everything that tokens are read of: row 1 is shorter."""
    length = np.array([3, 1], np.int32)
    tokens = np.full((2, 4), 2, np.int32)
    mask = np.arange(4) < length[:, None]
    return encoded().replace(
        data={
            "completion": tokens,
            "completion_mask": mask,
            "answers": np.stack([tokens, tokens], 1),
            "answers_mask": np.stack([mask, mask], 1),
            "privileged": tokens,
            "privileged_length": length,
            "solution": tokens,
            "solution_ends": np.array([[2, 3], [1, 0]], np.int32),
        }
    )


PLACES = {  # name -> (read, padding), in row 1
    "prompts": ((1, 0), (1, 2)),
    "completion": ((1, 0), (1, 1)),
    "answers": ((1, 1, 0), (1, 0, 3)),
    "privileged": ((1, 0), (1, 1)),
    "solution": ((1, 0), (1, 1)),
}


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("token", [-100, -1, 5, 2**31 - 1])
def test_a_token_that_is_read_is_named_and_padding_is_not_looked_at(name, token):
    read, padding = PLACES[name]
    token_ids.check_prompts(put(whole(), name, padding, token), 5)
    told = rf"{name}: .* \[0, 5\).* row 1 \(problem 1\) has {token}, and 1 tokens"
    with pytest.raises(ValueError, match=told):
        token_ids.check_prompts(put(whole(), name, read, token), 5)


@pytest.mark.parametrize("length", [0, -1, 6])
def test_a_length_outside_the_prompt_is_named(length):
    prompts = fakes.prompts(2, 5)
    prompts = prompts.replace(length=np.array([1, length], np.int32))
    with pytest.raises(ValueError, match=rf"1 to 5 tokens, but .*row 1 has {length}"):
        token_ids.check_prompts(prompts, 16)

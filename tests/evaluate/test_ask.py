"""Asking a policy: all problems once, in batches of one shape, and nothing changes."""

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.evaluate import ask, held_out
from rljax.rollout.sample import sampler
from rljax.task import Task
from rljax.types import Prompts, Verdict

P, T, V = 5, 2, 4
POLICY = fakes.bandit(P, T, V)
SAMPLE = sampler(POLICY, num_samples=3, max_tokens=T, stop_tokens=())
ROWS = Prompts(
    tokens=np.arange(P, dtype=np.int32)[:, None],
    length=np.ones(P, np.int32),
    id=np.arange(P, dtype=np.int32),
    data={"answer": np.frombuffer(b"01234", np.uint8)[:, None]},
)


def verify(prompts, samples):
    xp = np if isinstance(samples.tokens, np.ndarray) else jnp
    return Verdict.binary(xp.asarray(samples.tokens[..., 0] == 1))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 9])
def test_every_problem_is_answered_once_in_order_and_all_batches_have_one_shape(size):
    # A last batch of its own size would be compiled again; one that is not cut would
    # count problems twice.
    shapes = set()

    def answer(params, prompts):
        shapes.add(prompts.id.shape)
        return params + prompts.id

    got = ask.in_batches(answer, ROWS, size)(10)
    np.testing.assert_array_equal(got, 10 + np.arange(P))
    assert shapes == {(min(size, P),)}


def test_a_smaller_set_is_asked_in_the_batches_of_the_largest():
    # Validation would else be compiled once, and the test once more.
    shapes = []

    def answer(params, prompts):
        shapes.append(prompts.id.shape)
        return params + prompts.id

    got = ask.in_batches(answer, ROWS, 9, largest=8)(10)
    np.testing.assert_array_equal(got, 10 + np.arange(P))
    assert shapes == [(8,)]


def test_problems_may_lie_along_another_axis_of_the_answers():
    def answer(params, prompts):
        return np.stack([prompts.id, -prompts.id])

    got = ask.in_batches(answer, ROWS, 2, axis=1)(None)
    np.testing.assert_array_equal(got, [np.arange(P), -np.arange(P)])


def test_a_verifier_in_python_gives_the_same_answers():
    params = POLICY.init(None)
    graph = jax.jit(ask.ask(SAMPLE, verify))(params, ROWS)
    host = ask.ask(SAMPLE, verify, in_graph=False)(params, ROWS)
    assert graph.correct.shape == (P, 3)
    np.testing.assert_array_equal(graph.correct, host.correct)
    np.testing.assert_array_equal(graph.samples.tokens, host.samples.tokens)


class Words:
    """A tokenizer that writes the ids."""

    def decode(self, tokens, skip_special_tokens):
        assert not skip_special_tokens
        return " ".join(map(str, np.asarray(tokens).tolist()))


def evaluation(test=ROWS, verify=verify, group=None, **options):
    """An evaluation of `POLICY` on `ROWS`, and on these test problems."""
    task = Task(ROWS, ROWS, test, verify, group)
    return held_out(POLICY, task, Words(), max_tokens=T, stop_tokens=(), **options)


@pytest.mark.parametrize("in_graph", [True, False])
def test_where_the_verifier_failed_nothing_is_right_and_it_is_told(in_graph):
    # What a verifier that failed has written may be called correct: in training it is
    # read nowhere, and a held-out problem was once solved by it.
    def broken(prompts, samples):
        xp = np if isinstance(samples.tokens, np.ndarray) else jnp
        failed = samples.tokens[..., 0] * 0 + prompts.id[:, None] == 2
        return Verdict(
            reward=xp.ones(failed.shape, xp.float32),
            correct=xp.ones(failed.shape, bool),
            failed=failed,
        )

    found = evaluation(verify=broken, batch_size=3, num_samples=2, in_graph=in_graph)
    metrics, _ = found.validate(POLICY.init(None))
    assert metrics["pass@1"] == pytest.approx(4 / 5)
    assert metrics["verifier_failed_share"] == pytest.approx(1 / 5)
    stage, _ = found.test(POLICY.init(None))
    assert stage.greedy.tolist() == [True, True, False, True, True]


def test_an_evaluation_reports_samples_greedy_answers_and_texts():
    parity = ("parity", ROWS.id % 2)
    found = evaluation(group=parity, batch_size=2, num_samples=4, note="A note.")
    # Token 1 is certain for the first two problems, and token 2 for the others.
    logits = np.full((P, T, V), -50.0, np.float32)
    logits[:2, :, 1] = logits[2:, :, 2] = 50.0
    params = {"logits": jnp.asarray(logits).reshape(POLICY.init(None)["logits"].shape)}
    metrics, some = found.validate(params)
    assert [one.text for one in some[:3]] == ["1 1", "1 1", "2 2"]
    assert metrics["pass@1"] == metrics["pass@4"] == pytest.approx(2 / 5)
    assert metrics["length_mean"] == T
    stage, completions = found.test(params)
    assert stage.greedy.tolist() == [True, True, False, False, False]
    assert stage.correct.shape == (P, 4)
    assert completions[2].prompt == "2" and completions[2].text == "2 2"
    assert completions[2].answer == "2" and not completions[2].correct
    first, groups = found.tables({"now": stage})
    assert first.note.endswith("A note.") and groups.header[0] == "parity"
    again, _ = found.test(params)
    np.testing.assert_array_equal(again.correct, stage.correct)


def test_without_problems_to_test_on_there_is_no_test():
    none = jax.tree.map(lambda x: x[:0], ROWS)
    found = evaluation(test=none, batch_size=3)
    assert found.test is None
    assert list(found.programs) == ["evaluation, sampled"]
    _, batch = found.programs["evaluation, sampled"]
    assert batch.id.tolist() == [0, 1, 2]
    metrics, _ = found.validate(POLICY.init(None))
    assert 0 <= metrics["pass@1"] <= metrics["pass@8"] <= 1

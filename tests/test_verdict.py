"""What verifiers return is checked where they are called; what failed teaches nothing.

Here P = 2, G = 3.
"""

import dataclasses
import functools
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_run
import verify_fakes
import worker_fakes
from rich.console import Console

from rljax import program, verdict
from rljax.learn import update
from rljax.run import display, fault
from rljax.types import Rollout, Verdict
from rljax.verify import pooled

PROMPTS = verify_fakes.asking(["a", "b"])
SAMPLES = verify_fakes.saying([[b"a", b"b", b"c"]] * 2)
GOOD = {"reward": np.ones((2, 3), np.float32), "correct": np.ones((2, 3), bool)}
GOOD["failed"] = ~GOOD["correct"]


def on_host(verify):
    return verdict.of(verify, *jax.device_get((PROMPTS, SAMPLES)))


def in_graph(verify):
    return jax.jit(functools.partial(verdict.of, verify))(PROMPTS, SAMPLES)


@pytest.mark.parametrize("call", [on_host, in_graph])
@pytest.mark.parametrize(
    ("field", "value", "got"),
    [
        ("reward", np.ones(6, np.float32), r"float32\[6\]"),
        ("reward", np.ones(2, np.float32), r"float32\[2\]"),
        ("reward", np.ones((3, 2), np.float32), r"float32\[3, 2\]"),
        ("reward", np.ones((2, 3, 1), np.float32), r"float32\[2, 3, 1\]"),
        ("reward", np.ones((2, 3), np.int32), r"int32\[2, 3\]"),
        ("reward", np.ones((2, 3), bool), r"bool\[2, 3\]"),
        ("reward", np.ones((2, 3), np.complex64), r"complex64\[2, 3\]"),
        ("reward", 1.0, "float"),
        ("reward", None, "NoneType"),
        ("reward", "1", "str"),
        ("reward", [[1.0], [1.0, 2.0]], "list of 2"),
        ("correct", np.ones((2, 3), np.float32), r"float32\[2, 3\]"),
        ("correct", np.ones((2, 1), bool), r"bool\[2, 1\]"),
        ("failed", np.zeros((2, 3), np.int32), r"int32\[2, 3\]"),
        ("failed", None, "NoneType"),
        ("failed", False, "bool"),
    ],
)
def test_a_wrong_field_is_named_with_what_came_and_what_is_wanted(
    call, field, value, got
):
    # Broadcast, [2, 1] would judge all of a prompt's samples by its first one.
    def my_reward(prompts, samples):
        return Verdict(**(GOOD | {field: value}))

    dtype = "float32" if field == "reward" else "bool"
    with pytest.raises(
        ValueError,
        match=rf"test_verdict.*my_reward must return {field} as {dtype}"
        rf" \[P, G\] = \[2, 3\], got {got}; return Verdict\(reward=float32",
    ):
        call(my_reward)


@pytest.mark.parametrize("call", [on_host, in_graph])
@pytest.mark.parametrize(
    ("value", "got"),
    [
        (np.ones((2, 3), np.float32), r"float32\[2, 3\]"),
        (None, "NoneType"),
        ((1.0, True), "tuple of 2"),
        (GOOD, "dict"),
        (0.5, "float"),
    ],
)
def test_what_is_no_verdict_is_said(call, value, got):
    # Partial functions and objects have names, too; a table in them is not printed.
    class Mine:
        def __call__(self, *arguments):
            return value

    partial = functools.partial(lambda value, *_: value, value)
    for verify, name in {Mine(): "Mine", partial: "<lambda>"}.items():
        message = rf"test_verdict.*{name} must return a Verdict, got {got};"
        with pytest.raises(ValueError, match=message):
            call(verify)


@pytest.mark.parametrize("call", [on_host, in_graph])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, np.float64])
def test_rewards_of_another_floating_type_become_float32(call, dtype):
    def verify(prompts, samples):
        return Verdict(**(GOOD | {"reward": np.full((2, 3), 0.5, dtype)}))

    verdict = call(verify)
    assert verdict.reward.dtype == np.float32
    np.testing.assert_array_equal(verdict.reward, 0.5)


def test_lists_of_a_host_verifier_are_arrays():
    def verify(prompts, samples):
        return Verdict(**{name: value.tolist() for name, value in GOOD.items()})

    verdict = on_host(verify)
    for name, value in GOOD.items():
        np.testing.assert_array_equal(getattr(verdict, name), value)


@pytest.mark.parametrize("glue", [program.fused, program.split])
def test_both_glues_check_it_at_the_first_step(glue):
    def act(state, prompts):
        return Rollout(prompts=PROMPTS, samples=SAMPLES)

    def flat(prompts, samples):
        return Verdict.binary(jnp.ones(6, bool))

    every_step = jax.tree.map(lambda x: x[None], PROMPTS)
    with pytest.raises(ValueError, match=r"flat must return reward .* got float32\[6"):
        glue(act, update.Learner(None, None), flat)(jnp.zeros(()), every_step)


def test_a_pool_that_was_not_entered_is_refused():
    verify = pooled(worker_fakes.same, verify_fakes.BYTES, num_workers=1, timeout_s=1.0)
    with pytest.raises(ValueError, match="`with pooled"):
        program.split(None, None, verify)


def test_rows_whose_verifier_failed_count_as_failed_and_as_nothing_else():
    # Their NaN would make the mean NaN; as wrong answers they would make of the first
    # prompt, all of whose judged answers are right, a mixed one: solved 2/3, mixed 1.
    rows = np.array
    verdict = Verdict(
        reward=rows([[1.0, 1.0, np.nan], [0.5, 0.0, 0.0], [np.nan] * 3], np.float32),
        correct=rows([[1, 1, 0], [1, 0, 0], [0, 0, 0]], bool),
        failed=rows([[0, 0, 1], [0, 0, 0], [1, 1, 1]], bool),
    )
    samples = verify_fakes.saying([[b"a", b"b", b"c"]] * 3)
    rollout = Rollout(prompts=None, samples=samples, verdict=verdict)
    metrics = program.rollout_metrics(rollout)
    assert float(metrics["reward/mean"]) == pytest.approx(2.5 / 5)
    assert float(metrics["reward/solved"]) == pytest.approx((1 + 1 / 3) / 2)
    assert float(metrics["reward/mixed_share"]) == pytest.approx(1 / 3)
    assert float(metrics["verify/failed"].value) == 4.0
    assert float(metrics["verify/failed_share"]) == pytest.approx(4 / 9)


@pytest.mark.parametrize("size", [(1, 1), (3, 7), (41, 16)])
def test_the_share_is_exactly_one_when_all_have_failed(size):
    # 1 - 1e-7 would let a run go on for ever.
    verdict = Verdict.binary(jnp.ones(size, bool)).replace(failed=jnp.ones(size, bool))
    samples = verify_fakes.samples(np.zeros((*size, 1)), np.ones((*size, 1)))
    rollout = Rollout(prompts=None, samples=samples, verdict=verdict)
    metrics = jax.jit(program.rollout_metrics)(rollout.replace(prompts=PROMPTS))
    assert float(metrics["verify/failed_share"]) == 1.0
    assert float(metrics["reward/mean"]) == float(metrics["reward/solved"]) == 0.0


def shares(*values):
    return {"verify/failed_share": np.array(values, np.float32)}


def test_a_verifier_that_fails_for_all_in_several_steps_in_a_row_stops_the_run():
    watch = fault.Refusals(10, 0)
    assert watch.find(0, shares(1, 1, 1, 1)) is None
    assert watch.find(4, shares(0.99, 1, 1, 1)) is None  # some were judged in step 5
    problem = watch.find(8, shares(1, 1))
    assert "verifier (reward) failed for every sample of 5 steps in a row" in problem
    assert "6 to 10" in problem


def test_steps_without_a_verifier_are_no_failures():
    # Those of a warm start on demonstrations, say; a resumed run begins anew, too.
    watch = fault.Refusals(10, 0)
    assert watch.find(0, {"reward/mean": np.zeros(9)}) is None
    assert watch.find(9, shares(1, 1, 1, 1)) is None
    assert fault.Refusals(10, 40).find(40, shares(1, 1, 1, 1)) is None


@pytest.mark.parametrize(
    ("failed", "share", "text"),
    [(64, 1.0, "64 (100 %)"), (8, 0.125, "8 (12.5 %)"), (1, 1e-3, "1 (0.1 %)")],
)
def test_the_display_shows_how_many_failed(failed, share, text):
    metrics = {"verify/failed": failed, "verify/failed_share": share}
    board = display.Board("run", last=3, metrics=metrics)
    assert ("verifier failed", text) in display.values(board)


def test_the_display_says_nothing_of_a_verifier_that_works():
    board = display.Board("run", last=3, metrics={"verify/failed": 0.0})
    assert display.values(board) == []


def test_a_run_whose_verifier_always_fails_ends_with_an_error_that_says_so(tmp_path):
    # It would run to its end without having learned, exit 0. The warm start, steps 1
    # to 4, has no verifier.
    def failing(state, prompts):
        state, found = toy_run.run(state, prompts)
        all_failed = {"verify/failed": 8.0, "verify/failed_share": 1.0}
        every_step = {name: jnp.full(toy_run.K, x) for name, x in all_failed.items()}
        return state, found | every_step

    warm, rl = toy_run.phases()
    console = Console(file=io.StringIO(), width=500)
    phases = [warm, dataclasses.replace(rl, run=failing)]
    with pytest.raises(fault.RunFault, match=r"verifier .* 5 steps in a row, 5 to 9"):
        toy_run.go(tmp_path / "run", phases=phases, console=console)
    ((event, message),) = [
        found
        for found in toy_run.records(tmp_path / "run", "event", "event", "message")
        if found[0] == "run/fault"
    ]
    assert event == "run/fault" and "failed for every sample" in message
    assert "verifier failed 8 (100 %)" in console.file.getvalue()

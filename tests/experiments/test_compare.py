"""Comparing algorithms: populations, intervals, demonstrations, and the whole path."""

import dataclasses
import functools
import os
import pathlib
import re
import subprocess
import sys

import chex
import fakes
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import cli, compare, population, sweep, sweep_warm
from experiments import compare_report as report
from rljax import algorithms, program
from rljax.keys import Stream, stream
from rljax.rollout.sample import sampler
from rljax.task import addition
from rljax.types import Prompts, Verdict

ROOT = pathlib.Path(__file__).parents[2]
P, T, V = 4, 2, 3
BANDIT = fakes.bandit(P, T, V)
SAMPLE = sampler(BANDIT, num_samples=4, max_tokens=T, stop_tokens=())


# Statistics.


def test_the_interval_is_that_of_the_mean():
    # 400 problems, one seed: half of it is 1.96 standard errors.
    values = np.random.default_rng(3).normal(0.5, 1.0, (1, 400))
    mean, low, high = report.interval(values)
    assert mean == pytest.approx(values.mean())
    error = values.std() / np.sqrt(400)
    np.testing.assert_allclose([mean - low, high - mean], 1.96 * error, rtol=0.1)


def test_the_interval_resamples_seeds_as_well():
    # Two seeds that disagree on every problem: as often as not one is drawn twice.
    # Over problems alone it would be [0.5, 0.5].
    values = np.stack([np.zeros(50), np.ones(50)])
    assert report.interval(values) == (0.5, 0.0, 1.0)


def test_algorithms_are_compared_on_the_same_resamples():
    values = np.random.default_rng(0).random((3, 20))
    change = report.interval((values + 0.25) - values)
    np.testing.assert_allclose(change, 0.25)


def test_steps_to_a_level_by_hand():
    steps, curve = np.array([0, 20, 40]), np.array([0.25, 0.5, 1.0])
    assert report.steps_to(steps, curve, 0.75) == 30
    assert report.steps_to(steps, curve, 0.2) == 0
    assert np.isnan(report.steps_to(steps, curve[:2], 0.75))


def outcome(seed, **metrics):
    draw = np.random.default_rng(seed)
    names = ("policy/entropy_nats", "mass/positive", "mass/negative", "mass/log_ratio")
    return report.Outcome(
        rate=1e-3,
        tried={"0.001": 0.5},
        steps=np.array([0, 2, 4]),
        correct=draw.random((3, 2, 5, 8))
        < np.array([0.1, 0.5, 0.9])[:, None, None, None],
        greedy=draw.random((3, 2, 5)) < 0.5,
        metrics={name: draw.random((2, 4)) for name in names} | metrics,
    )


def test_the_report_has_every_algorithm_and_picture(tmp_path):
    moving = {
        f"policy/{k}": np.ones((2, 4)) for k in ("alpha", "delta", "p_ema", "h_ema")
    }
    outcomes = {"static": outcome(0), "moving": outcome(1, **moving)}
    text = report.write(outcomes, tmp_path, (0.5,))
    assert text == (tmp_path / "table.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| moving")]
    assert len(rows) == 3 and "1 → 1 → 1" in rows[1]
    for name in ("results.json", "curves.png", "schedule.png"):
        assert (tmp_path / name).stat().st_size
    # The first one is what others are compared with.
    assert "pass@1 - static" in text


def test_without_a_schedule_there_is_no_picture_of_one(tmp_path):
    report.write({"static": outcome(0)}, tmp_path, (0.5,))
    assert not (tmp_path / "schedule.png").exists()


# Populations.


def problems(seed, steps=3):
    """Prompts [K, P], in an order of each seed."""
    order = np.random.default_rng(seed).permuted(
        np.tile(np.arange(P, dtype=np.int32), (steps, 1)), axis=1
    )
    return Prompts(
        tokens=np.zeros((steps, P, 1), np.int32),
        length=np.ones((steps, P), np.int32),
        id=order,
    )


def verify(prompts, samples):
    return Verdict.binary(samples.tokens[..., 0] == prompts.id[:, None] % V)


def make_learner(rate):
    # A large epsilon: Adam divides a gradient of zero, known to rounding, by itself.
    adam = functools.partial(optax.adam, eps=1e-3)
    return population.learner(
        BANDIT, algorithms.dr_grpo(T), adam, num_steps=6, num_minibatches=2
    )(rate)


def test_every_part_of_a_run_has_keys_of_its_own():
    # With --warm the further stage and RL once drew the same noise for a prompt.
    keys = population.keys(5, 2)
    parts = [population.of_part(keys, part) for part in (1, 2, 3)]
    found = np.concatenate([jax.random.key_data(k) for k in [keys, *parts]])
    assert len(np.unique(found, axis=0)) == 8


@pytest.mark.slow
def test_a_member_trains_as_it_would_alone():
    # A rate that no member sees, a shared key or a shared stream would show here.
    keys, rates, seeds = population.keys(5, 2), (0.1, 0.4), (0, 1)
    params = jax.vmap(BANDIT.init)(keys)
    stacked = jax.tree.map(lambda *x: np.stack(x), *map(problems, seeds))
    course = population.train(
        population.Parts(BANDIT, SAMPLE, verify, make_learner),
        params,
        population.of_part(keys, 2),
        rates,
        iter([stacked, stacked]),
        2,
        lambda params: (),
    )
    assert course.steps == [0, 3, 6]
    for r, rate in enumerate(rates):
        learner = make_learner(rate)
        run = program.fused(program.actor(BANDIT, SAMPLE), learner, verify)
        for s in seeds:
            key = stream(jax.random.key(5 + s), Stream.PHASE, 1)
            state = learner.init(BANDIT.init(None), key)
            for _ in range(2):
                state, metrics = run(state, problems(s))
            mine = jax.tree.map(lambda x, r=r, s=s: x[r, s], course.params)
            chex.assert_trees_all_close(mine, state.params, atol=1e-5)
            np.testing.assert_allclose(
                course.metrics["reward/mean"][r, s, 3:],
                metrics["reward/mean"],
                atol=1e-6,
            )
    logits = course.params["logits"]
    assert float(jnp.max(jnp.abs(logits[0] - logits[1]))) > 0.1


def test_a_fault_of_one_member_stops_the_run():
    def wrong(prompts, samples):
        verdict = verify(prompts, samples)
        odd = jnp.where(prompts.id[0] == 0, 2.0, 1.0)  # a reward outside [0, 1]
        return verdict.replace(reward=verdict.reward * odd)

    def learner(rate):
        return population.learner(
            BANDIT, algorithms.fade(), optax.adam, num_steps=6, num_minibatches=1
        )(rate)

    keys = population.keys(0, 2)
    stacked = jax.tree.map(lambda *x: np.stack(x), problems(0), problems(1))
    with pytest.raises(FloatingPointError, match="reward_out_of_range"):
        population.train(
            population.Parts(BANDIT, SAMPLE, wrong, learner),
            jax.vmap(BANDIT.init)(keys),
            keys,
            (0.1,),
            iter([stacked]),
            1,
            lambda params: (),
        )


def test_every_seed_has_a_stream_of_its_own_and_every_algorithm_the_same():
    rows = jax.tree.map(lambda x: x[0], problems(0))
    rows = jax.tree.map(lambda x: np.concatenate([x] * 8), rows)
    rows = rows.replace(id=np.arange(32, dtype=np.int32))

    def first(part):
        made = population.streams(
            rows,
            range(2),
            part=part,
            num_prompts=8,
            steps=2,
            map_fn=lambda prompts, rng: prompts,
        )
        return next(made).id

    assert first(1).shape == (2, 2, 8)
    np.testing.assert_array_equal(first(1), first(1))
    assert np.any(first(1)[0] != first(1)[1])
    assert np.any(first(1) != first(3))


def test_the_judge_asks_every_member_every_problem():
    # Member 1 always says 1: right on prompt 1 alone. In parts of 2, order must stay.
    logits = np.zeros((1, 2, P, T, V), np.float32)
    logits[0, 1, ..., 1] = 100
    rows = jax.tree.map(lambda x: x[0], problems(0)).replace(id=np.arange(P))
    ask = population.evaluator(
        BANDIT, verify, rows, size=2, max_tokens=T, stop_tokens=()
    )
    correct, greedy = ask({"logits": jnp.asarray(logits)})
    assert correct.shape == (1, 2, P, 8) and greedy.shape == (1, 2, P)
    np.testing.assert_array_equal(greedy[0, 1], [False, True, False, False])
    np.testing.assert_array_equal(correct[0, 1].all(-1), greedy[0, 1])
    assert 0 < correct[0, 0].mean() < 1


def test_what_is_saved_comes_back(tmp_path):
    tree = {"a": {"mass/positive": np.arange(3.0), "b": np.array(True)}, "c": 1.5}
    population.save(tmp_path / "x.npz", tree)
    chex.assert_trees_all_equal(population.load(tmp_path / "x.npz"), tree)
    assert [path.name for path in tmp_path.iterdir()] == ["x.npz"]


# Demonstrations and the command line.

MODEL = addition.new_model(2, 64, 4, 128)
TASK = addition.task(256, 1024)
SOME = jax.tree.map(lambda x: x[:400], TASK.train)


def demonstrated(**numbers):
    config = dataclasses.replace(sweep.Config(), **numbers)
    return sweep_warm.forgetful(config, MODEL)(SOME, np.random.default_rng(0))


def test_slips_replace_digits_alone():
    right, noisy = (
        demonstrated(slip=0.0, forget=0.0),
        demonstrated(slip=0.5, forget=0.0),
    )
    assert addition.is_right(right).all()
    before, after = (x.data["completion"] for x in (right, noisy))
    digits = before >= 2  # not padding or end
    digits &= before != MODEL.tokenizer.convert_tokens_to_ids("=")
    np.testing.assert_array_equal(before[~digits], after[~digits])
    # Half of the digits are drawn anew, a tenth of these to what they were.
    assert np.mean(before[digits] != after[digits]) == pytest.approx(0.45, abs=0.02)
    text = MODEL.tokenizer.decode(np.unique(after[digits]))
    assert text == "0123456789"


def test_of_two_stored_answers_the_first_is_right():
    store = sweep_warm.right_and_forgetful(sweep.Config(forget=1.0), MODEL)
    data = store(SOME, np.random.default_rng(0)).data
    assert data["answers"].shape == (400, 2, 12)

    def right(i):
        one = {"completion": data["answers"][:, i]}
        return addition.is_right(SOME.replace(data={**SOME.data, **one}))

    assert right(0).all()
    np.testing.assert_array_equal(right(1), SOME.data["carries"] == 0)


def test_names_are_checked():
    assert sweep.names("fade, grpo", compare.ALGORITHMS, "--algorithms") == [
        "fade",
        "grpo",
    ]
    for text in ("fade,gropo", "fade,fade"):
        with pytest.raises(ValueError, match="--algorithms must name some of fade"):
            sweep.names(text, compare.ALGORITHMS, "--algorithms")


@pytest.mark.parametrize(
    "numbers, match",
    [
        ({"num_steps": 30}, "--num-steps"),
        ({"num_test": 100}, "--num-test"),
        ({"seeds": 0}, "--seeds"),
        ({"warm": "gft", "num_samples": 2}, "--num-samples"),
        ({"warm": "fade"}, "--warm"),
    ],
)
def test_numbers_that_do_not_fit_are_refused_first(numbers, match):
    with pytest.raises(ValueError, match=match):
        compare.check(dataclasses.replace(sweep.Config(), **numbers))


@pytest.mark.parametrize(
    "flag",
    [
        {"mesh": "data=2"},
        {"sampler_mesh": "data=1"},
        {"profile": True},
        {"track": "wandb"},
    ],
)
def test_flags_that_a_comparison_would_not_follow_are_refused(flag, tmp_path):
    launch = dataclasses.replace(cli.Launch(), **flag)
    name = next(iter(flag)).replace("_", "-")
    with pytest.raises(ValueError, match=f"--{name} must not be given"):
        compare.main(sweep.Config(), tmp_path / "run", launch)
    assert not (tmp_path / "run").exists()


def test_a_setting_is_where_other_flags_start_from():
    assert compare.setting(["--seeds", "3"]) == compare.SETTINGS["demo"]
    for arguments in (["--setting", "hard", "--seeds", "3"], ["--setting=hard"]):
        assert compare.setting(arguments) == compare.SETTINGS["hard"]
    for config in compare.SETTINGS.values():
        compare.check(config)
        compare.check(dataclasses.replace(config, **compare.QUICK))


@pytest.mark.slow
def test_the_whole_path_from_the_command_line_and_again(tmp_path):
    env = dict(os.environ, JAX_PLATFORMS="cpu", XDG_CACHE_HOME=str(tmp_path))
    env.pop("XLA_FLAGS", None)

    def start(*flags):
        given = ["--quick", "--warm", "gft,sft", "--algorithms", "fade"]
        given += ["--run-dir", tmp_path / "run", *flags]
        process = subprocess.run(
            [sys.executable, "-m", "experiments.compare", *given],
            cwd=ROOT,
            env=env,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert process.returncode == 0, process.stdout + process.stderr
        return process.stdout

    first = start()
    for name in (
        "table.md",
        "results.json",
        "curves.png",
        "schedule.png",
        "warm/table.md",
    ):
        assert (tmp_path / "run" / name).exists(), name
    for shown in ("| gft |", "| sft |", "| gft+fade |", "| sft+fade |", "0.0004: "):
        assert shown in first
    # Nothing is trained again, and the tables are the same.
    again = start("--resume")
    assert "warm start" in first and "step 0" in first
    assert "warm start" not in again and "step 0" not in again
    progress = re.compile(r"warm start, |.*, step \d+ of ")
    tables = [line for line in first.splitlines() if not progress.match(line)]
    assert again.splitlines() == tables

"""The flags of policy transforms: what they refuse, and a run that leaves adapters."""

import dataclasses
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from experiments import assemble, problems, train
from rljax import export, keys
from rljax.model import Experts, hugging_face, language_model
from rljax.model.hugging_face import adapter
from rljax.policy import frozen, lora


def quick(**changes):
    make = train.with_numbers(changes.get("algorithm", "grpo"), train.Config)
    return make(**train.QUICK | changes)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"lora_rank": 2, "lora_targets": "q,x"}, "--lora-targets: targets must"),
        ({"lora_rank": 2, "lora_targets": "q,q"}, "--lora-targets: targets must"),
        ({"lora_rank": 0}, "--lora-rank must lie"),
        ({"lora_rank": 2, "lora_alpha": 0.0}, "--lora-alpha must"),
        ({"lora_alpha": 8.0}, "--lora-alpha must come with --lora-rank, got 8.0"),
        ({"lora_targets": "q"}, "--lora-targets must come with --lora-rank"),
        ({"reference_ema": 0.9}, "--reference-ema must come with --reference-every"),
        (
            {"replay_routes": True, "algorithm": "luffy"},
            "--replay-routes must go with",
        ),
        (
            {"rollout_weights": "int8", "algorithm": "gft"},
            "--rollout-weights int8 must",
        ),
        ({"reference_every": 1, "reference_ema": 1.0}, "--reference-ema must"),
    ],
)
def test_flags_that_fit_nothing_are_refused(changes, told):
    with pytest.raises(ValueError, match=told):
        train.check(quick(**changes))


def test_a_reference_that_nobody_reads_cannot_follow():
    with pytest.raises(ValueError, match="--algorithm grpo reads none"):
        train.build(quick(reference_every=2))


def test_routes_of_a_dense_model_cannot_be_replayed():
    with pytest.raises(ValueError, match="--replay-routes must have a --model"):
        train.build(quick(replay_routes=True))


def test_the_update_replays_routes_and_the_reference_takes_its_own():
    c = quick(replay_routes=True, algorithm="grpo_kl", lora_rank=2, lora_targets="q")
    dense, task = problems.build(c, None)
    config = dataclasses.replace(dense.config, experts=Experts(4, 2, d_ff=8))
    made = assemble.experiment(c, language_model.new(config, dense.tokenizer), task)
    step = made.program()
    rollout = jax.eval_shape(step.act, step.state, step.batch())
    assert rollout.samples.behaviour.extra["routes"].shape == (8, 4, 4, 1, 2)
    assert rollout.reference.extra == {}
    _, metrics = jax.eval_shape(step.run(), step.state, step.prompts)
    assert "gap/router_mismatch" in metrics


@pytest.mark.parametrize(
    "algorithm",
    [
        "fade",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("icepop", "ppo")),
    ],
)
def test_a_sampler_in_int8_is_measured_reported_and_corrected(algorithm):
    (made,) = train.build(quick(algorithm=algorithm, rollout_weights="int8"))
    step = made.program()
    state = jax.jit(made.begin)(made.model.init(jax.random.key(0)), jax.random.key(1))
    _, metrics = step.run()(state, next(made.prompts))
    # Without `measure_old` the sampler's own scores would stand for the policy's, and
    # their distance would be 0. A recipe that corrects logs under its term's name.
    (gap,) = [m for name, m in metrics.items() if name.endswith("mismatch/gap_max")]
    assert 1e-5 < float(gap.value[0]) < 1
    (exact,) = train.build(quick(algorithm=algorithm))
    assert not [n for n in exact_metrics(exact) if n == "mismatch/gap_max"]


def exact_metrics(made):
    step = made.program()
    return jax.eval_shape(step.run(), step.state, step.prompts)[1]


def test_adapters_and_a_value_head_are_what_is_trained():
    (made,) = train.build(quick(algorithm="ppo", lora_rank=2, lora_targets="q,v"))
    state = made.program().state
    assert set(state.params) == {"policy", "value"}
    assert set(state.params["policy"]["layers"]) == {"q", "v"}
    # Evaluations ask what is sampled from in training, and hold no merged copy.
    evaluations = made.program().others
    assert len(evaluations) == 2
    for ask, (params, batch) in evaluations.values():
        assert set(params["layers"]["q"]) == {"kernel", lora.A, lora.B}
        assert jax.eval_shape(ask, params, batch).correct.dtype == bool
    shapes = jax.eval_shape(made.export, state)
    assert jax.tree.map(np.shape, shapes) == jax.tree.map(np.shape, made.model.shapes())


@pytest.mark.slow
def test_a_run_leaves_a_merged_policy_and_adapters_that_give_it(tmp_path):
    transformers = pytest.importorskip("transformers")
    flags = (
        "--quick --algorithm asft --lora-rank 2 --reference-every 1"
        f" --reference-ema 0.5 --run-dir {tmp_path / 'run'}"
    )
    # A process of its own has one device, for which less is compiled.
    done = subprocess.run(
        [sys.executable, "-m", "experiments.train", *flags.split()],
        cwd=pathlib.Path(__file__).parents[2],
        env={**os.environ, "XLA_FLAGS": "", "XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    require_merged(tmp_path / "run")
    export.export(tmp_path / "run", tmp_path / "exported")
    _, policy = hugging_face.load(tmp_path / "run" / "policy")
    _, exported = hugging_face.load(tmp_path / "exported")
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), exported, policy
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "run/policy")
    assert not any("lora" in name for name in model.state_dict())


def require_merged(run_dir):
    """The policy of a run is its base with its adapters merged."""
    (made,) = train.build(quick(algorithm="grpo"))
    _, policy = hugging_face.load(run_dir / "policy")
    spec, adapters = adapter.load(run_dir / "adapters")
    key = keys.stream(jax.random.key(0), keys.Stream.PARAMETERS)
    base = made.model.init(key)
    moved = policy["layers"]["q"]["kernel"] - base["layers"]["q"]["kernel"]
    assert float(np.max(np.abs(moved))) > 1e-5  # else there is nothing to merge
    merged = lora.merged(frozen.joined(adapters, base), spec)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), merged, policy
    )

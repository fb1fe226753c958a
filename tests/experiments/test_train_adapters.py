"""--adapters: a run goes on from LoRA adapters in PEFT's format."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hugging_face_folders import small_params

from experiments import train
from rljax.data import tokenizer
from rljax.model import DecoderConfig, hugging_face
from rljax.model.hugging_face import adapter
from rljax.policy import frozen, lora

CONFIG = DecoderConfig(
    vocab_size=20,
    num_layers=2,
    d_model=16,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    d_ff=24,
)
SPEC = lora.Lora(rank=3, alpha=5.0, rank_stabilised=True, targets=("q", "down"))


def adapters(spec):
    """Adapters of the model, both factors random."""
    made = lora.with_adapters(small_params(CONFIG), spec, jax.random.key(1))
    made, _ = frozen.split(made, lora.is_adapter)
    return jax.tree.map(lambda x: x + jnp.linspace(0, 1, x.size).reshape(x.shape), made)


@pytest.fixture
def folder(tmp_path):
    """A folder with a model, problems, and adapters of the model."""
    words = tokenizer.character_tokenizer("0123456789+=")
    params = small_params(CONFIG)
    hugging_face.save(tmp_path / "model", CONFIG, params, tokenizer=words)
    rows = ({"question": f"{i}+1=", "answer": f"{i + 1}"} for i in range(64))
    text = "\n".join(map(json.dumps, rows))
    (tmp_path / "data.jsonl").write_text(text)
    adapter.save(tmp_path / "adapters", adapters(SPEC), SPEC)
    return tmp_path


def config(folder, **changes):
    given = {
        "model": folder / "model",
        "data": folder / "data.jsonl",
        "adapters": folder / "adapters",
        "algorithm": "grpo_kl",
    }
    given |= changes
    make = train.with_numbers(given["algorithm"], train.Config)
    return make(**train.QUICK | given)


def test_the_first_state_has_them_and_so_does_the_reference(folder):
    (made,) = train.build(config(folder))
    state = jax.jit(made.begin)(made.model.init(None), jax.random.key(0))
    want = adapters(SPEC)
    jax.tree.map(np.testing.assert_array_equal, state.params, want)
    jax.tree.map(np.testing.assert_array_equal, state.reference, want)
    # What is planned and compiled is what runs.
    planned = made.program().state
    assert jax.tree.structure(planned) == jax.tree.structure(state)
    merged = lora.merged(frozen.joined(want, small_params(CONFIG)), SPEC)
    jax.tree.map(np.testing.assert_array_equal, made.export(state), merged)


def test_they_are_what_moves(folder):
    easy = {"verifier": "contains", "needle": "1"}  # which a random model learns, too
    (made,) = train.build(config(folder, gradient_gate=3.0, **easy))
    state = jax.jit(made.begin)(made.model.init(None), jax.random.key(0))
    before = jax.tree.map(np.array, state.params)
    state, metrics = made.loop()(state, next(made.prompts))
    state, metrics = made.loop()(state, next(made.prompts))  # the first rate is 0
    assert np.isfinite(np.asarray(metrics["update/loss"])).all()
    moved = jax.tree.map(lambda a, b: np.any(a != b), before, state.params)
    assert any(jax.tree.leaves(moved))


def test_adapters_of_another_model_are_refused(folder):
    wide = dataclasses.replace(CONFIG, num_layers=3)
    hugging_face.save(
        folder / "wide",
        wide,
        small_params(wide),
        tokenizer=tokenizer.character_tokenizer("0123456789+="),
    )
    with pytest.raises(ValueError, match=r"--adapters must belong to --model .*wide"):
        train.build(config(folder, model=folder / "wide"))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"lora_rank": 2}, "--adapters must go with .* --lora-rank 2"),
        ({"model": None, "data": None}, "--adapters must go with .* --model None"),
    ],
)
def test_flags_that_contradict_them_are_refused(folder, changes, told):
    with pytest.raises(ValueError, match=told):
        train.check(config(folder, **changes))


def test_a_folder_that_is_missing_or_holds_none_is_named(folder):
    with pytest.raises(ValueError, match=r"--adapters: '.*nowhere' must be a local"):
        train.check(config(folder, adapters=folder / "nowhere"))
    with pytest.raises(ValueError, match=r"--adapters: .* must hold adapter_config"):
        train.check(config(folder, adapters=folder / "model"))

"""Models with their real weights, from folders that environment variables name.

RLJAX_SMOLLM2 and RLJAX_GEMMA3: folders of SmolLM2-135M-Instruct and of Gemma 3 270M.
"""

import dataclasses
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hugging_face_models import torch_logits, torch_logp

from rljax import data
from rljax.data import tokenizer
from rljax.model import decoder_policy, hugging_face
from rljax.rollout import sample
from rljax.types import Prompts, Samples

pytestmark = pytest.mark.slow

NUM_TOKENS = 20
NUM_PROMPT = 8
LONG = (
    "The river rises in the hills, runs past three mills and a ruined abbey, and comes"
    " to the sea near a town that once built ships. In spring it floods the meadows;"
    " in a dry summer children cross it on stones. What is 7 * 8? It is 56."
)
TEXTS = ("The capital of France is", "Once upon a time there was a")


@pytest.fixture(scope="module", params=["RLJAX_SMOLLM2", "RLJAX_GEMMA3"])
def folder(request):
    if request.param not in os.environ:
        pytest.skip(f"{request.param} names no folder of the model")
    return pathlib.Path(os.environ[request.param])


def test_bfloat16_is_as_near_to_float32_as_it_is_in_torch(folder):
    # Activations rounded once more than torch rounds them would show in thirty layers.
    torch = pytest.importorskip("torch")
    import transformers

    words = tokenizer.load_tokenizer(folder)
    rows = np.asarray(words(LONG)["input_ids"], np.int32)[None]
    prompts = Prompts(
        tokens=jnp.asarray(rows[:, :NUM_PROMPT]),
        length=jnp.asarray([NUM_PROMPT]),
        id=jnp.arange(1),
    )
    tokens = jnp.asarray(rows[:, None, NUM_PROMPT:])
    samples = Samples(
        tokens=tokens,
        mask=jnp.ones(tokens.shape, bool),
        source=jnp.zeros((1, 1), jnp.int32),
        finished=jnp.ones((1, 1), bool),
    )

    def of_torch(dtype):
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation="eager"
        )
        with torch.no_grad():
            logits = torch_logits(model.eval(), prompts, samples).float()
            index = torch.tensor(np.asarray(tokens, np.int64))[..., None]
            return logits.log_softmax(-1).gather(-1, index)[..., 0].numpy()

    config, params = hugging_face.load(folder)
    narrow = decoder_policy(dataclasses.replace(config, dtype=jnp.bfloat16))
    exact = of_torch(torch.float32)
    ours = np.asarray(jax.jit(narrow.measure)(params, prompts, samples).logp)
    ours, theirs = (
        float(np.sqrt(np.mean((got - exact) ** 2)))
        for got in (ours, of_torch(torch.bfloat16))
    )
    print(f"{folder}: off by {ours:.4f} nats in bfloat16, torch by {theirs:.4f}")
    assert 0 < ours < 1.5 * theirs < 0.5


def test_text_and_probabilities_are_those_of_transformers(folder):
    torch = pytest.importorskip("torch")
    import transformers

    config, params = hugging_face.load(folder)
    words = tokenizer.load_tokenizer(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    rows = [np.asarray(words(text)["input_ids"], np.int32) for text in TEXTS]
    width = max(map(len, rows))
    prompts = Prompts(
        tokens=jnp.asarray([np.pad(row, (0, width - len(row))) for row in rows]),
        length=jnp.asarray([len(row) for row in rows]),
        id=jnp.arange(len(rows)),
    )
    policy = decoder_policy(config)
    draw = sample.greedy(policy, max_tokens=NUM_TOKENS, stop_tokens=())
    got = jax.jit(draw)(params, prompts, jax.random.key(0))[0].tokens
    for row, tokens in zip(rows, np.asarray(got[:, 0]), strict=True):
        ids = torch.tensor(row[None].astype(np.int64))
        want = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NUM_TOKENS,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        np.testing.assert_array_equal(tokens, want[0, len(row) :].numpy())
    samples = Samples(
        tokens=got,
        mask=jnp.ones(got.shape, bool),
        source=jnp.zeros(got.shape[:2], jnp.int32),
        finished=jnp.ones(got.shape[:2], bool),
    )
    logp = jax.jit(policy.measure)(params, prompts, samples).logp
    with torch.no_grad():
        want = torch_logp(model, prompts, samples).numpy()
    np.testing.assert_allclose(logp, want, atol=1e-4)


@pytest.mark.parametrize("system", [None, "Answer with a number."])
def test_chat_prompts_are_those_of_the_folders_template(folder, system):
    words = tokenizer.load_tokenizer(folder)
    if words.chat_template is None:
        pytest.skip(f"{folder} is no chat model")
    asked = [*TEXTS, "  What is 7 * 8?\n\nShow <|work|>, {x} and \u00e9. "]
    problems = [data.Problem(text, "56") for text in asked]
    prompts, _ = data.encode_prompts(
        problems, words, 128, chat=data.Chat(system=system)
    )
    first = [] if system is None else [{"role": "system", "content": system}]
    for n, text in enumerate(asked):
        want = words.apply_chat_template(
            [*first, {"role": "user", "content": text}],
            add_generation_prompt=True,
            return_dict=False,
        )
        assert prompts.tokens[n][: prompts.length[n]].tolist() == want

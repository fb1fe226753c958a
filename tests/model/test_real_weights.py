"""Models with their real weights, from folders that environment variables name.

RLJAX_SMOLLM2 and RLJAX_GEMMA3: folders of SmolLM2-135M-Instruct and of Gemma 3 270M.
"""

import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hugging_face_models import torch_logp

from rljax.data import tokenizer
from rljax.model import decoder_policy, hugging_face
from rljax.rollout import sample
from rljax.types import Prompts, Samples

pytestmark = pytest.mark.slow

NUM_TOKENS = 20
TEXTS = ("The capital of France is", "Once upon a time there was a")


@pytest.fixture(scope="module", params=["RLJAX_SMOLLM2", "RLJAX_GEMMA3"])
def folder(request):
    if request.param not in os.environ:
        pytest.skip(f"{request.param} names no folder of the model")
    return pathlib.Path(os.environ[request.param])


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

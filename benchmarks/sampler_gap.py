"""Measures the gap between sampler and learner by dtype, with real weights.

RLJAX_SMOLLM2=DIR python -m benchmarks.sampler_gap [--prompts 4] [--samples 4] \\
    [--tokens 64]

DIR is a folder of SmolLM2-135M-Instruct; --model names another folder.

Sampler and learner compute the log-probability of every sampled token with the same
parameters: the sampler one token at a time from its cache, the learner all at once.
They differ by rounding, so importance weights are not exactly 1. The gap is the
absolute difference of the two log-probabilities in nats, at temperature 1. The table
describes its whole distribution.

All rows use the same random bits, so dtypes sample the same text up to a first
difference.
"""

import argparse
import os
import pathlib
import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import results
from rljax.data import Chat, Problem, encode_prompts
from rljax.model import DecoderConfig, Model, decoder_policy, language_model
from rljax.rollout.sample import sampler
from rljax.types import Prompts

QUANTILES = (0.5, 0.9, 0.99, 0.999)
FAR = (0.01, 0.1, 1.0)
HEAD = (
    *("dtype", "attention", "tokens", "mean"),
    *(f"{q:.1%}" for q in QUANTILES),
    "largest",
    *(f"share > {far:g}" for far in FAR),
)
PROMPT_TOKENS = 128
TEXTS = (
    "Natalia sold clips to 48 of her friends in April, and half as many in May. How"
    " many did she sell altogether?",
    "Write a short story about a lighthouse keeper who finds a letter.",
    "Explain why the sky is blue to a child.",
    "Give me a recipe for a soup of lentils, step by step.",
)
# (dtype of activations and decoded weights, the learner's attention)
KINDS = (("float32", "whole"), ("bfloat16", "whole"), ("bfloat16", "blocks"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=os.environ.get("RLJAX_SMOLLM2"))
    parser.add_argument("--prompts", type=int, default=len(TEXTS))
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=64)
    args = parser.parse_args()
    if not 0 < args.prompts <= len(TEXTS):
        sys.exit(f"--prompts must be from 1 to {len(TEXTS)}, got {args.prompts}.")
    if args.model is None:
        sys.exit("RLJAX_SMOLLM2 or --model must name the folder of a model; set one.")
    folder, rows = pathlib.Path(args.model), []
    for dtype, attention in KINDS:
        model = language_model.load(folder, dtype=jnp.dtype(dtype), attention=attention)
        encoded = prompts(model, TEXTS[: args.prompts])
        found = gaps(
            model.config,
            model.init(jax.random.key(0)),
            encoded,
            num_samples=args.samples,
            max_tokens=args.tokens,
        )
        rows.append((dtype, attention, found.size, *numbers(found)))
        body = f"{folder.name}, nats.\n\n{results.table(HEAD, rows)}"
        results.write("sampler_gap", "The gap of sampler and learner", body, rows)


def gaps(
    config: DecoderConfig,
    params,
    encoded: Prompts,
    *,
    num_samples: int,
    max_tokens: int,
) -> np.ndarray:
    """f64[tokens]: the gap of each sampled token, nats."""
    policy = decoder_policy(config)
    sample = sampler(
        policy, num_samples=num_samples, max_tokens=max_tokens, stop_tokens=()
    )

    @jax.jit
    def run(params, encoded, key):
        samples, old = sample(params, encoded, key)
        now = policy.measure(params, encoded, samples)
        return jnp.abs(old.logp - now.logp), samples.mask

    gap, mask = run(params, encoded, jax.random.key(1))
    return np.asarray(gap, np.float64)[np.asarray(mask)]


def prompts(model: Model, texts: Sequence[str]) -> Prompts:
    """The texts as user messages if the model has a chat template, else as they are."""
    problems = [Problem(text, "none") for text in texts]
    chat = Chat() if model.tokenizer.chat_template else None
    return encode_prompts(problems, model.tokenizer, PROMPT_TOKENS, chat=chat)[0]


def numbers(gap: np.ndarray) -> list[float]:
    """Mean, quantiles and maximum of the gap, and the fractions above each of `FAR`."""
    shares = [float(np.mean(gap > far)) for far in FAR]
    quantiles = [float(q) for q in np.quantile(gap, QUANTILES)]
    return [float(np.mean(gap)), *quantiles, float(np.max(gap)), *shares]


if __name__ == "__main__":
    main()

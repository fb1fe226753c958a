"""Measures slots and microbatches by length for completions of very different lengths.

python -m benchmarks.long_tail [--prompts 64] [--samples 16] [--tokens 128]
    [--model FOLDER --texts FILE --end-token 2]

A decoder does real work, but a script ends each sample at a random length: lognormal
with a coefficient of variation of 1 and a mean of T / 6, cut at T. Sampling all
completions at once is compared with sampling in slots, and updates of whole rows with
updates by length. With --model, a Hugging Face folder, a trained model also continues
the texts of a JSONL file and ends its completions itself.
"""

import argparse
import functools
import pathlib
import statistics
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.stats

from benchmarks import clock, results, rljax_program, workload
from rljax import algorithms, data, program
from rljax.data.tokenizer import load_tokenizer
from rljax.learn import update
from rljax.model import decoder_policy, hugging_face
from rljax.policy.base import Policy
from rljax.rollout.sample import sampler
from rljax.types import Prompts, Rollout, Verdict

STOP = 2
CV = 1.0


class Case(NamedTuple):
    """A policy and prompts to sample from.

    end: the token that ends a completion.
    tokens: of the longest completion.
    """

    name: str
    policy: Policy
    params: Any
    prompts: Prompts
    end: int
    tokens: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", help="folder of Hugging Face files")
    parser.add_argument("--texts", help='JSONL file, of which "question" is read')
    parser.add_argument("--end-token", type=int, default=STOP)
    args = parser.parse_args()
    cases = [by_script(args)] + ([] if args.model is None else [trained(args)])
    found = {case.name: measure(case, args) for case in cases}
    body = "\n\n".join(f"## {name}\n\n{text}" for name, (text, _) in found.items())
    seconds = {name: data for name, (_, data) in found.items()}
    results.write("long_tail", "Long tails", body, seconds)


def by_script(args) -> Case:
    """W1's decoder, whose completions a script ends."""
    sizes = rljax_program.build(workload.WORKLOADS["W1"], 1).program.sizes()
    script = hazard(args.tokens + 1, mean=args.tokens / 6)
    policy = scripted(decoder_policy(sizes.decoder), script)
    params = jax.jit(policy.init)(jax.random.key(0))
    prompts = rljax_program.prompts(args.prompts)
    return Case("W1's decoder, by a script", policy, params, prompts, STOP, args.tokens)


def trained(args) -> Case:
    """The model of --model, which ends its completions itself."""
    config, params = hugging_face.load(args.model)
    texts = data.read_jsonl(args.texts)[: args.prompts]
    prompts, _ = data.encode_prompts(texts, load_tokenizer(args.model), 64)
    policy, name = decoder_policy(config), f"{pathlib.Path(args.model).name}, trained"
    return Case(name, policy, params, prompts, args.end_token, args.tokens)


def measure(case: Case, args) -> tuple[str, dict]:
    """The section of the page, and the seconds of all calls."""
    rollout, sampling, drawn = by_slots(case, args)
    training, learned = by_lengths(case, rollout, args)
    lengths = np.asarray(rollout.samples.length, float)
    text = (
        f"{lengths.shape[0]} prompts x {args.samples} samples, mean length"
        f" {lengths.mean():.0f} of {case.tokens} tokens, coefficient of variation"
        f" {lengths.std() / lengths.mean():.2f}.\n\n{sampling}\n\n{training}"
    )
    return text, {"slots": drawn, "lengths": learned}


def by_slots(case: Case, args):
    """A rollout, the table of slots, and slots -> seconds by round."""
    prompts, params, key = case.prompts, case.params, jax.random.key(1)
    total = len(prompts.id) * args.samples
    draws = {
        n: jax.jit(
            sampler(
                case.policy,
                num_samples=args.samples,
                max_tokens=case.tokens,
                stop_tokens=(case.end,),
                num_slots=n,
            )
        )
        for n in (None, *(total // k for k in (4, 8, 16, 32)))
    }
    drawn = {n: draw(params, prompts, key) for n, draw in draws.items()}
    calls = {n: lambda d=d: d(params, prompts, key) for n, d in draws.items()}
    times = clock.in_turn(calls, args.rounds)
    first, old = drawn[None]
    rows = []
    for n, (samples, _) in drawn.items():
        used = program.rollout_metrics(
            Rollout(prompts=prompts, samples=samples, old=old)
        )
        other = int(jnp.sum(samples.tokens != first.tokens))
        useful = f"{float(used['samples/useful_share']):.0%}"
        rows.append((n or "all at once", *compared(times, n, None), useful, other))
    head = ("slots", "seconds", "times as fast", "useful slots", "tokens that differ")
    correct = first.tokens[..., 0] % 2 == 0
    rollout = Rollout(
        prompts=prompts, samples=first, old=old, verdict=Verdict.binary(correct)
    )
    seconds = {str(n): x for n, x in times.items()}
    return rollout, results.table(head, rows), seconds


def by_lengths(case: Case, rollout: Rollout, args):
    """The table of updates by length, and number of lengths -> seconds by round."""
    learns, after = {}, {}
    for n in (1, 2, 4, 8):
        learner = update.learner(
            case.policy.measure,
            algorithms.dr_grpo(case.tokens),
            optax.sgd(1.0),
            num_microbatches=4,
            num_lengths=n,
        )
        state = jax.jit(learner.init)(case.params, jax.random.key(1))
        learns[n] = functools.partial(jax.jit(learner.learn), state, rollout)
        after[n] = learns[n]()[0].params
    times = clock.in_turn(learns, args.rounds)
    rows = []
    for n in learns:
        gaps = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)), after[n], after[1])
        gap = max(map(float, jax.tree.leaves(gaps)))
        rows.append((n, *compared(times, n, 1), f"{gap:.0e}"))
    head = ("lengths", "seconds", "times as fast", "largest gap of a parameter")
    return results.table(head, rows), {str(n): x for n, x in times.items()}


def compared(times: dict, name, base) -> tuple[float, float]:
    """Median seconds, and the median speed-up over `base` in the same round."""
    pairs = zip(times[base], times[name], strict=True)
    return statistics.median(times[name]), statistics.median(a / b for a, b in pairs)


def hazard(num_tokens: int, mean: float) -> np.ndarray:
    """f32[num_tokens]: the probability that token t ends a completion that reached it.

    It makes lengths lognormal with the given mean, tokens.
    """
    sigma = np.sqrt(np.log(1 + CV**2))
    law = scipy.stats.lognorm(sigma, scale=mean * np.exp(-(sigma**2) / 2))
    t = np.arange(num_tokens)
    chance = (law.cdf(t + 1) - law.cdf(t)) / law.sf(t)
    return np.clip(chance, 1e-6, 1 - 1e-6).astype(np.float32)


def scripted(policy: Policy, hazard: np.ndarray) -> Policy:
    """The same policy, but the probability of the end token at t is `hazard[t]`."""
    chance = jnp.asarray(hazard)

    def write(logits, t):  # f32[P, ..., V], i32[P]
        end = chance[t].reshape(-1, *(1,) * (logits.ndim - 1))
        others = jax.nn.log_softmax(logits.at[..., STOP].set(-1e9))
        is_end = jnp.arange(logits.shape[-1]) == STOP
        return jnp.where(is_end, jnp.log(end), others + jnp.log1p(-end))

    def prefill(params, prompts):
        logits, prompt = policy.prefill(params, prompts)
        return write(logits, jnp.zeros(logits.shape[0], jnp.int32)), prompt

    def decode(params, tokens, t, prompt, cache):
        logits, cache = policy.decode(params, tokens, t, prompt, cache)
        return write(logits, t + 1), cache

    return policy._replace(prefill=prefill, decode=decode)


if __name__ == "__main__":
    main()

"""rljax on the workload, as a user runs it: host loop, all metrics, files, display.

python -m benchmarks.rljax_step W1 [--steps 40] [--unshared]
`--unshared` gives every sample its own copy of the prompt, as the peers do.
"""

import argparse
import pathlib
import resource
import tempfile
import time

START = time.perf_counter()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402

from benchmarks import workload  # noqa: E402
from rljax import advantage, data, loop, loss, metrics, train, update  # noqa: E402
from rljax.policy import DecoderConfig, decoder_policy  # noqa: E402
from rljax.policy.base import Policy  # noqa: E402
from rljax.sample import sampler  # noqa: E402
from rljax.types import Prompts, Verdict  # noqa: E402

STEPS_PER_DISPATCH = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workload", choices=workload.WORKLOADS)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--unshared", action="store_true")
    args = parser.parse_args()
    work = workload.WORKLOADS[args.workload]

    decoder = DecoderConfig(
        vocab_size=workload.VOCAB,
        num_layers=work.num_layers,
        d_model=work.d_model,
        num_heads=work.num_heads,
        num_kv_heads=work.num_heads,
        head_dim=work.d_model // work.num_heads,
        d_ff=work.d_ff,
        qkv_bias=True,
    )
    policy = decoder_policy(decoder)
    if args.unshared:
        policy = unshared(policy)
    grpo = advantage.algorithm(
        policy=advantage.Term(
            loss.clipped_ratio(0.2, 0.2),
            advantage=advantage.chain(
                advantage.center_by_group(), advantage.scale_by_group_std()
            ),
            weighting=advantage.token_mean(),
        )
    )
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(1e-3, weight_decay=0.0)
    )
    learner = update.learner(policy.measure, grpo, optimizer)
    sample = sampler(
        policy,
        num_samples=work.num_samples,
        max_tokens=work.new_tokens,
        stop_tokens=(),  # every completion has new_tokens tokens
    )
    run = loop.fused(loop.actor(policy, sample), learner, verify)
    state = jax.jit(lambda key: learner.init(policy.init(key), key))(jax.random.key(0))
    phase = train.Phase(
        name="rl",
        run=run,
        stream=data.stream(
            prompts(4096),
            num_prompts=work.num_prompts,
            seed=0,
            steps_per_dispatch=STEPS_PER_DISPATCH,
        ),
        num_steps=args.steps,
        steps_per_dispatch=STEPS_PER_DISPATCH,
    )
    with tempfile.TemporaryDirectory() as folder:
        state = train.train([phase], state, folder, checkpoint_every=args.steps)
        records = metrics.read_metrics(pathlib.Path(folder) / metrics.FILE)
    seconds = np.array([r["seconds"] for r in records if r["kind"] == "step"])
    first = seconds[STEPS_PER_DISPATCH - 1]
    ends = seconds[STEPS_PER_DISPATCH - 1 :: STEPS_PER_DISPATCH]
    per_step = np.diff(ends)[1:] / STEPS_PER_DISPATCH * 1e3
    workload.report(
        "rljax unshared" if args.unshared else "rljax",
        per_step.tolist(),
        first_step_s=float(time.perf_counter() - START - (seconds[-1] - first)),
        peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        versions={"jax": jax.__version__},
    )


def prompts(count: int) -> Prompts:
    """The problems as right-padded tokens; the answer as tokens for the verifier."""
    pairs = workload.problems(count)
    rows = [workload.token_ids(question) for question, _ in pairs]
    answers = [workload.token_ids(answer) for _, answer in pairs]
    tokens = np.zeros((count, workload.PROMPT_TOKENS), np.int32)
    wanted = np.full((count, 3), -1, np.int32)
    for i, (row, answer) in enumerate(zip(rows, answers, strict=True)):
        tokens[i, : len(row)] = row
        wanted[i, : len(answer)] = answer
    return Prompts(
        tokens=tokens,
        length=np.array([len(row) for row in rows], np.int32),
        id=np.arange(count, dtype=np.int32),
        data={"answer": wanted},
    )


def verify(prompts, samples):
    """Exact match of the first tokens: what is asked for here is work, not learning."""
    want = prompts.data["answer"][:, None]
    same = (samples.tokens[..., : want.shape[-1]] == want) | (want < 0)
    return Verdict.binary(jnp.all(same, -1))


def unshared(policy: Policy) -> Policy:
    """The same policy, every sample with a prompt of its own: groups of one."""

    def apart(tree):  # [P, G, ...] -> [P * G, 1, ...]
        return jax.tree.map(lambda x: x.reshape(-1, 1, *x.shape[2:]), tree)

    def together(tree, like):
        return jax.tree.map(lambda x: x.reshape(*like.shape[:2], *x.shape[2:]), tree)

    def repeat(prompts, num):
        return jax.tree.map(lambda x: jnp.repeat(x, num, 0), prompts)

    def prefill(params, prompts, num_samples, max_tokens):
        logits, cache = policy.prefill(
            params, repeat(prompts, num_samples), 1, max_tokens
        )
        return logits[::num_samples], cache

    def decode(params, tokens, t, cache):
        logits, cache = policy.decode(params, apart(tokens), t, cache)
        return together(logits, tokens), cache

    def measure(params, prompts, samples):
        repeated = repeat(prompts, samples.tokens.shape[1])
        stats = policy.measure(params, repeated, apart(samples))
        return together(stats, samples.tokens)

    return policy._replace(prefill=prefill, decode=decode, measure=measure)


if __name__ == "__main__":
    main()

"""The workload as an rljax program, shared by several benchmarks."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import workload
from rljax import advantage, data, loss
from rljax import program as step
from rljax.learn import update
from rljax.model import DecoderConfig, decoder_policy
from rljax.policy.base import Policy
from rljax.rollout.sample import sampler
from rljax.run import train
from rljax.types import Prompts, TrainState, Verdict


class Built(NamedTuple):
    """A program, and what it needs to run.

    start: key -> initial state.
    prompts: the data set.
    """

    policy: Policy
    program: step.Program
    start: Callable[[jax.Array], TrainState]
    prompts: Prompts

    def phase(self, num_steps: int, run: step.Run | None = None) -> train.Phase:
        """A phase for the run loop; `run` replaces the program's own fused step."""
        return train.Phase(
            name="rl",
            run=self.program.fused() if run is None else run,
            stream=self.stream(),
            num_steps=num_steps,
            steps_per_dispatch=jax.tree.leaves(self.program.prompts)[0].shape[0],
        )

    def stream(self, seed: int = 0):
        """Batches [K, P, ...] of the data set."""
        steps, num_prompts = self.program.prompts.length.shape
        return data.stream(
            self.prompts,
            num_prompts=num_prompts,
            seed=seed,
            steps_per_dispatch=steps,
        )


def build(
    work: workload.Workload,
    steps_per_dispatch: int,
    *,
    shared: bool = True,
) -> Built:
    """GRPO with AdamW on a new decoder.

    Args:
      work: the workload.
      steps_per_dispatch: training steps per call.
      shared: whether the samples of a group share one copy of the prompt.
    """
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
    if not shared:
        policy = unshared(policy, work.num_samples)
    grpo = advantage.algorithm(
        policy=advantage.Term(
            advantage=advantage.chain(
                advantage.center_by_group(), advantage.scale_by_group_std()
            ),
            weighting=advantage.token_mean(),
            loss_fn=loss.ppo_clip(0.2, 0.2),
        )
    )
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(1e-3, weight_decay=0.0)
    )
    learner = update.learner(
        policy.measure, grpo, optimizer, num_microbatches=work.num_microbatches
    )
    sample = sampler(
        policy,
        num_samples=work.num_samples,
        max_tokens=work.new_tokens,
        stop_tokens=(),  # every completion has new_tokens tokens
    )
    problems = prompts(max(4096, work.num_prompts))
    shape = (steps_per_dispatch, work.num_prompts)

    def start(key):
        return learner.init(policy.init(key), key)

    program = step.Program(
        act=step.actor(policy, sample),
        learner=learner,
        verify=verify,
        state=jax.eval_shape(lambda: start(jax.random.key(0))),
        prompts=jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((*shape, *x.shape[1:]), x.dtype), problems
        ),
        decoder=decoder,
    )
    return Built(policy, program, jax.jit(start), problems)


def prompts(count: int) -> Prompts:
    """The problems as right-padded tokens, with the answers' tokens as data."""
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
    """Whether the first tokens equal the answer; good enough to measure speed."""
    want = prompts.data["answer"][:, None]
    same = (samples.tokens[..., : want.shape[-1]] == want) | (want < 0)
    return Verdict.binary(jnp.all(same, -1))


def unshared(policy: Policy, num_samples: int) -> Policy:
    """The same policy, but every sample has its own copy of the prompt."""

    def apart(tree):  # [P, G, ...] -> [P * G, 1, ...]
        return jax.tree.map(lambda x: x.reshape(-1, 1, *x.shape[2:]), tree)

    def flat(tree):  # [P, G, ...] -> [P * G, ...]
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)

    def together(tree):  # [P * G, ...] -> [P, G, ...]
        return jax.tree.map(lambda x: x.reshape(-1, num_samples, *x.shape[2:]), tree)

    def repeat(tree):  # [P, ...] -> [P * G, ...]
        return jax.tree.map(lambda x: jnp.repeat(x, num_samples, 0), tree)

    def prefill(params, prompts):
        logits, prompt = policy.prefill(params, repeat(prompts))
        prompt = jax.tree.map(
            lambda x: x.reshape(-1, num_samples, *x.shape[1:]), prompt
        )
        return logits[::num_samples], prompt

    def init_cache(prompt, num_rows, max_tokens):
        del num_rows
        return policy.init_cache(flat(prompt), 1, max_tokens)

    def decode(params, tokens, t, prompt, cache):
        logits, cache = policy.decode(
            params, apart(tokens), repeat(t), flat(prompt), cache
        )
        return together(logits), cache

    def measure(params, prompts, samples, reference=None):
        del reference
        return together(policy.measure(params, repeat(prompts), apart(samples)))

    return policy._replace(
        prefill=prefill, init_cache=init_cache, decode=decode, measure=measure
    )

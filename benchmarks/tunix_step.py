"""Times Tunix's GRPOLearner on a workload, with Tunix's Qwen2 and vanilla rollout.

python benchmarks/tunix_step.py W1 [--steps 20]    # with the Python of its own venv
"""

import argparse
import importlib.metadata
import itertools
import os
import resource
import statistics
import time

START = time.perf_counter()
os.environ |= {"HF_HUB_OFFLINE": "1", "JAX_PLATFORMS": "cpu"}

import grain.python as grain  # noqa: E402
import jax  # noqa: E402
import optax  # noqa: E402
import workload  # noqa: E402
from flax import nnx  # noqa: E402
from tunix.models.qwen2 import model as qwen2  # noqa: E402
from tunix.rl import rl_cluster  # noqa: E402
from tunix.rl.grpo import grpo_learner  # noqa: E402
from tunix.rl.rollout import base_rollout  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workload", choices=workload.WORKLOADS)
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    work = workload.WORKLOADS[args.workload]
    auto = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=auto)
    rows = [
        {"prompts": question, "answer": answer}
        for question, answer in workload.problems(work.num_prompts * (args.steps + 2))
    ]
    ticks, lengths, parts = [], [], {}

    def reward(prompts, completions, answer, **columns):
        ticks.append(time.perf_counter())
        return [float(c == a) for c, a in zip(completions, answer, strict=True)]

    with mesh:
        cluster = cluster_of(model(work), work, args.steps, mesh)
        learner = grpo_learner.GRPOLearner(
            rl_cluster=cluster,
            algo_config=grpo_learner.GRPOConfig(
                num_generations=work.num_samples,
                num_iterations=1,
                beta=0.0,
                epsilon=0.2,
            ),
            reward_fns=reward,
        )
        time_parts(cluster, parts, lengths)
        data = grain.MapDataset.source(rows).batch(work.num_prompts)
        learner.train(data)
    gaps = [b - a for a, b in itertools.pairwise(ticks[4:])]
    assert set(lengths) == {work.tokens}, lengths  # all implementations do equal work
    version = importlib.metadata.version("google-tunix")
    workload.report(
        "tunix",
        ms=[1e3 * gap for gap in gaps],
        first_step_s=ticks[1] - START,
        peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        parts_ms={k: 1e3 * statistics.median(v[2:]) for k, v in parts.items()},
        versions={"tunix": version, "jax": jax.__version__},
    )


def model(work: workload.Workload):
    """A Qwen2 model of the workload's sizes, its embedding scaled as in the peers."""
    config = qwen2.ModelConfig(
        num_layers=work.num_layers,
        vocab_size=workload.VOCAB,
        embed_dim=work.d_model,
        hidden_dim=work.d_ff,
        num_heads=work.num_heads,
        head_dim=work.d_model // work.num_heads,
        num_kv_heads=work.num_heads,
        rope_theta=10000,
        norm_eps=1e-6,
        use_tied_embedding=True,
    )
    made = qwen2.Qwen2(config, rngs=nnx.Rngs(0))
    embedding = made.embedder.input_embedding
    embedding.value = embedding.value * 0.02
    return made


def cluster_of(actor, work: workload.Workload, steps: int, mesh):
    """An RL cluster whose actor also samples; there is no reference."""
    roles = (rl_cluster.Role.ACTOR, rl_cluster.Role.REFERENCE, rl_cluster.Role.ROLLOUT)
    return rl_cluster.RLCluster(
        actor=actor,
        reference=None,
        tokenizer=workload.hugging_face_tokenizer(),
        cluster_config=rl_cluster.ClusterConfig(
            role_to_mesh=dict.fromkeys(roles, mesh),
            rollout_engine="vanilla",
            offload_to_cpu=False,
            training_config=training(steps, work.num_prompts),
            rollout_config=rollout(work.new_tokens),
        ),
    )


def training(steps: int, num_prompts: int):
    """One AdamW step per rollout batch, without microbatches."""
    return rl_cluster.RLTrainingConfig(
        actor_optimizer=optax.chain(
            optax.clip_by_global_norm(1.0), optax.adamw(1e-3, weight_decay=0.0)
        ),
        eval_every_n_steps=10**6,
        max_steps=steps,
        mini_batch_size=num_prompts,
        train_micro_batch_size=num_prompts,
        rollout_micro_batch_size=num_prompts,
        compute_logps_micro_batch_size=num_prompts,
    )


def rollout(new_tokens: int):
    """The sampler's configuration: no token ends a completion.

    top_p must be 1.0, because None means greedy in Tunix.
    """
    return base_rollout.RolloutConfig(
        max_tokens_to_generate=new_tokens,
        max_prompt_length=workload.PROMPT_TOKENS,
        kv_cache_size=workload.PROMPT_TOKENS + new_tokens + 2,
        temperature=1.0,
        top_p=1.0,
        top_k=None,
        eos_tokens=[99],
    )


def time_parts(cluster, parts: dict, lengths: list) -> None:
    """Wraps generation and update to record their seconds, with the device's work."""
    generate, update = cluster.rollout.generate, cluster.update_actor

    def timed(name, call, after):
        def wrapped(*args, **kwargs):
            start = time.perf_counter()
            out = call(*args, **kwargs)
            after(out)
            parts.setdefault(name, []).append(time.perf_counter() - start)
            return out

        return wrapped

    def count(out):
        lengths.append(sum(len(tokens) for tokens in out.tokens))

    def wait(out):
        jax.block_until_ready(jax.tree.leaves(nnx.state(cluster.actor_trainer.model)))

    cluster.rollout.generate = timed("sample", generate, count)
    cluster.update_actor = timed("measure, weigh and update", update, wait)


if __name__ == "__main__":
    main()

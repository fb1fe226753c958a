"""RL with FADE in one compiled program: column addition, or your own model and data.

Without flags: a small decoder is warm-started on careless demonstrations of 3-digit
addition with working, and then trained by RL against an in-graph verifier. With --model
and --data: the policy of a Hugging Face folder on your own problems, no warm start.

Result: see LOG.md, 2026-11-21.
Run:  python -m experiments.arithmetic
Smoke: python -m experiments.arithmetic --quick
"""

import dataclasses
import pathlib
from typing import Literal

import jax
import optax
import rich.console

from experiments import cli, ranges
from experiments import column_addition as addition
from experiments.first_stage import FirstStage
from experiments.judge import Judge
from experiments.task import Task, build
from rljax import algorithms, data, digest, evaluate, keys, loss
from rljax import program as loop
from rljax.advantage import Term, algorithm, token_mean
from rljax.evaluate import report
from rljax.learn import update
from rljax.model import decoder_policy, hugging_face
from rljax.plan import cost
from rljax.policy import Policy
from rljax.rollout.sample import sampler
from rljax.run import run_dir as folder
from rljax.run import train
from rljax.types import TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Every number of the run."""

    seed: int = 0
    """Seed of parameters, data order and sampling."""

    # Your own model, problems and verifier
    model: pathlib.Path | None = None
    """Hugging Face folder of a Llama-type model with its tokenizer; by default a new
    decoder of the sizes below is warm-started."""
    data: pathlib.Path | None = None
    """JSONL file of problems; by default column addition. Needs --model."""
    question: str = "question"
    """Field of the data with the question."""
    answer: str = "answer"
    """Field of the data with the reference answer."""
    answer_after: str | None = None
    """The answer is what follows this marker in its field, such as #### for GSM8K."""
    template: str = "{question}"
    """Text of the prompt around the question."""
    verifier: Literal["number", "last-number", "exact", "contains"] = "number"
    """number: the completion is the answer's number, or has it after --after;
    last-number: its last number is, or the one in its last \\boxed{}; exact: the same
    text; contains: the completion contains --needle."""
    after: str = ""
    """number: read the number right after the last occurrence of this, whatever text
    follows it (#### for GSM8K, \\boxed{ for LaTeX); last-number: read only what follows
    the first occurrence."""
    needle: str = ""
    """contains: the text to look for."""
    max_prompt_tokens: int = 256
    """Longer prompts of your data are dropped and counted, tokens."""

    # The policy made for column addition
    num_layers: int = 2
    """Layers of the decoder."""
    d_model: int = 64
    """Width of the decoder."""
    num_heads: int = 4
    """Attention heads."""
    d_ff: int = 128
    """Width of the feed-forward layers."""

    # Warm start on demonstrations
    warm_steps: int = 1000
    """Training steps of the warm start; 0 for none."""
    warm_prompts: int = 128
    """Demonstrations per step."""
    warm_learning_rate: float = 3e-3
    """Peak; after 30 steps of warm-up it decays as a cosine to 5 %."""
    forget: float = 0.7
    """Probability that a demonstration forgets a carry that is due."""

    # Reinforcement learning
    num_steps: int = 240
    """Training steps: rollout batches."""
    steps_per_dispatch: int = 20
    """Training steps per call of the compiled program."""
    num_prompts: int = 128
    """Prompts per step."""
    num_samples: int = 8
    """Samples per prompt, the group."""
    max_tokens: int = 12
    """Longest completion, tokens, the end token included."""
    temperature: float = 1.0
    """Of the policy that RL samples and trains, softmax(logits / temperature); above 0.
    Use what was trained at this temperature."""
    num_minibatches: int = 2
    """Optimiser steps per rollout batch."""
    num_microbatches: int = 1
    """Pieces of a minibatch that are in memory at once."""
    num_lengths: int = 1
    """Further pieces by completion length; divides --num-samples. For long tails."""
    num_slots: int | None = None
    """Completions sampled at a time, refilled as they end; None: all at once."""
    learning_rate: float = 8e-4
    """Peak; after 10 optimiser steps of warm-up it decays linearly to 10 %."""
    gradient_clip: float = 1.0
    """Largest global norm of a gradient."""
    clip: float = 0.2
    """Ratios further than this from 1 are clipped."""
    entropy_target: float | None = None
    """FADE's H*, nats; by default half of the entropy at the start."""

    # Evaluation and checkpoints
    evaluate_every: int = 40
    """Training steps between evaluations on the validation problems."""
    evaluation_temperature: float = 1.0
    """Of the samples that are judged, above 0; greedy answers are judged, too."""
    num_validation: int = 256
    """Held-out problems of each evaluation."""
    num_test: int = 1024
    """Held-out problems of the table at the end."""
    checkpoint_every: int = 40
    """Training steps between checkpoints."""
    keep: int = 3
    """Checkpoints kept."""


QUICK = Config(
    warm_steps=200,
    num_steps=8,
    steps_per_dispatch=4,
    num_prompts=16,
    warm_prompts=32,
    num_validation=64,
    num_test=64,
    evaluate_every=4,
    checkpoint_every=4,
)


def check(config: Config) -> None:
    """Raises ValueError for numbers and texts that no run can begin with.

    Cheap, so that it can be asked first: before a file is read or a folder made.
    """
    ranges.require(config)
    ranges.heads(config)
    ranges.multiple(config, "num_steps", "steps_per_dispatch")
    ranges.multiple(config, "num_prompts", "num_minibatches", "num_microbatches")
    ranges.multiple(config, "num_samples", "num_lengths")
    ranges.tokens(config, "num_prompts", "num_samples", "max_tokens")
    ranges.tokens(config, "num_prompts", "steps_per_dispatch", "max_prompt_tokens")
    for held_out in ("num_validation", "num_test"):
        ranges.tokens(config, held_out, "max_tokens")
    ranges.product(
        config, 2**31 - 1, "a 32-bit counter", "num_steps", "num_minibatches"
    )
    if config.model is None and config.data is None:
        ranges.multiple(config, "warm_steps", "steps_per_dispatch")
        addition.check(config)
    if "{question}" not in config.template:
        raise ValueError(
            f"--template must contain {{question}}, got {config.template!r}; put it"
            " where the question belongs."
        )
    for name in ("answer_after", "needle"):
        asked = name == "answer_after" or config.verifier == "contains"
        if asked and vars(config)[name] == "":
            raise ValueError(
                f"{ranges.flag(name)} must hold at least one character, got ''; pass"
                " the text to look for."
            )


def warm_learner(config: Config, policy: Policy) -> update.Learner:
    """Supervised learning of demonstrations, as an algorithm like any other."""
    rate = optax.warmup_cosine_decay_schedule(
        0.0,
        config.warm_learning_rate,
        min(30, config.warm_steps // 2),
        config.warm_steps,
        0.05 * config.warm_learning_rate,
    )
    sft = algorithm(nll=Term(weighting=token_mean(), loss_fn=loss.nll()))
    return update.learner(policy.measure, sft, optimizer(config, rate))


def rl_learner(config: Config, policy: Policy) -> update.Learner:
    """FADE with a clipped ratio and a token mean."""
    total = config.num_steps * config.num_minibatches
    warmup = min(10, total // 2)
    rate = optax.join_schedules(
        [
            optax.linear_schedule(0.0, config.learning_rate, warmup),
            optax.linear_schedule(
                config.learning_rate, 0.1 * config.learning_rate, total - warmup
            ),
        ],
        [warmup],
    )
    return update.learner(
        policy.measure,
        algorithms.fade(entropy_target=config.entropy_target, clip=config.clip),
        optimizer(config, rate),
        num_minibatches=config.num_minibatches,
        num_microbatches=config.num_microbatches,
        num_lengths=config.num_lengths,
    )


def optimizer(config: Config, rate: optax.Schedule) -> optax.GradientTransformation:
    """AdamW without decay; b2 is short, as runs are of some hundred steps."""
    return optax.chain(
        optax.clip_by_global_norm(config.gradient_clip),
        optax.adamw(rate, b2=0.99, weight_decay=0.0),
    )


def trained_policy(config: Config, task: Task) -> Policy:
    """The task's decoder at the temperature of RL."""
    return decoder_policy(task.decoder, temperature=config.temperature)


def program(config: Config | None = None, task: Task | None = None) -> cost.Program:
    """RL: sampler, verifier and update, and what they start from."""
    config = Config() if config is None else config
    check(config)
    task = build(config) if task is None else task
    policy = trained_policy(config, task)
    learner = rl_learner(config, policy)
    sample = sampler(
        policy,
        num_samples=config.num_samples,
        max_tokens=config.max_tokens,
        stop_tokens=task.stop_tokens,
        num_slots=config.num_slots,
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    shape = (config.steps_per_dispatch, config.num_prompts)
    return cost.Program(
        act=loop.actor(policy, sample),
        learner=learner,
        verify=task.verify,
        state=jax.eval_shape(
            lambda key: learner.init(task.init(task.loaded, key), key), key
        ),
        prompts=jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((*shape, *x.shape[1:]), x.dtype), task.train
        ),
        sizes=cost.Sizes(
            decoder=task.decoder,
            num_prompts=config.num_prompts,
            num_samples=config.num_samples,
            prompt_tokens=task.train.tokens.shape[1],
            max_tokens=config.max_tokens,
            num_minibatches=config.num_minibatches,
            num_microbatches=config.num_microbatches,
            num_slots=config.num_slots,
        ),
    )


def phases(
    config: Config, task: Task, judge: Judge, before: FirstStage
) -> list[train.Phase]:
    """Warm start, if the policy needs one, and RL."""
    warm = config.warm_steps > 0 and config.model is None

    def evaluation(state: TrainState, start_of_rl: bool):
        if start_of_rl:
            before.keep(judge.test(state.params)[0])
        before.write()  # what a full disk did not take
        return judge.validation(state.params)

    learner = rl_learner(config, trained_policy(config, task))
    begin = jax.jit(
        lambda s: learner.init(s.params, keys.stream(s.key, keys.Stream.PHASE, 1)),
        donate_argnums=0,
    )
    rl = train.Phase(
        name="rl",
        run=program(config, task).fused(),
        stream=data.stream(
            task.train,
            num_prompts=config.num_prompts,
            seed=config.seed,
            steps_per_dispatch=config.steps_per_dispatch,
        ),
        num_steps=config.num_steps,
        steps_per_dispatch=config.steps_per_dispatch,
        begin=begin,
        evaluate=lambda s: evaluation(s, not warm and int(s.step) == 0),
        evaluate_every=config.evaluate_every,
    )
    if not warm:
        return [rl]
    demonstrations = data.stream(
        task.train,
        num_prompts=config.warm_prompts,
        seed=config.seed + 1,
        steps_per_dispatch=config.steps_per_dispatch,
        map_fn=lambda p, rng: addition.demonstrate(p, rng, config.forget),
    )
    return [
        train.Phase(
            name="warm start",
            run=loop.fused(loop.demonstrator(), warm_learner(config, task.policy)),
            stream=demonstrations,
            num_steps=config.warm_steps,
            steps_per_dispatch=config.steps_per_dispatch,
            evaluate=lambda s: evaluation(s, int(s.step) == config.warm_steps),
            evaluate_every=max(config.warm_steps // 2, 1),
        ),
        rl,
    ]


def main(
    config: Config, run_dir: pathlib.Path, resume: bool
) -> dict[str, evaluate.Estimate]:
    """Trains a small language model by RL with FADE, end to end, in one compiled
    program: 3-digit addition with working after a careless warm start, or your own
    Hugging Face model on your own problems."""
    check(config)
    task = build(config)
    problems = digest.fingerprint((task.train, task.validation, task.test))
    made_of = {**dataclasses.asdict(config), "problems": problems}
    with folder.open_run(run_dir, made_of, resume=resume) as run_dir:
        return train_and_compare(config, task, run_dir)


def train_and_compare(
    config: Config, task: Task, run_dir: pathlib.Path
) -> dict[str, evaluate.Estimate]:
    """The run, its policy and its report, in a folder that is ours."""
    judge, before = Judge(config, task), FirstStage(run_dir)
    parts, policy = phases(config, task, judge, before), trained_policy(config, task)
    warm = len(parts) > 1
    first = warm_learner(config, task.policy) if warm else rl_learner(config, policy)
    stream, of = keys.stream, keys.Stream
    make = jax.jit(
        lambda loaded, key: first.init(
            task.init(loaded, stream(key, of.PARAMETERS)), stream(key, of.PHASE, 0)
        )
    )
    state = train.train(
        parts,
        make(task.loaded, jax.random.key(config.seed)),
        run_dir,
        checkpoint_every=config.checkpoint_every,
        keep=config.keep,
    )
    if not any((run_dir / "policy").glob("*")):  # a finished run that was resumed has
        hugging_face.save(
            run_dir / "policy",
            task.decoder,
            state.params,
            tokenizer=task.tokenizer if task.metadata is None else None,
            metadata=task.metadata,
        )
    after, completions = judge.test(state.params)
    first = before.read()
    stages = {} if first is None else {parts[0].name if warm else "before": first}
    stages["after RL"] = after
    tables = [judge.compare(stages)]
    if task.group is not None:
        tables.append(evaluate.compare_by_group(stages, task.group[1], task.group[0]))
    try:
        path = report.write_report(
            run_dir, title="RL with FADE", tables=tables, completions=completions
        )
    except OSError as error:  # a full disk must not take the tables with it
        path = f"none, {error}; --resume writes it"
    show(run_dir, tables, completions, path)
    return {name: evaluate.pass_at_k(s.correct, 1) for name, s in stages.items()}


def show(run_dir, tables, completions, report_path) -> None:
    """The tables, some completions with their verdicts, and where everything lies."""
    console = rich.console.Console(highlight=False)
    for sample in completions[:6]:
        verdict = "right" if sample.correct else f"wrong, it is {sample.answer}"
        console.print(f"{sample.prompt}{sample.text}   {verdict}", markup=False)
    for table in tables:
        console.print(f"\n{table}", markup=False)
    console.print(
        f"\nrun folder: {run_dir} (config, metrics, tensorboard, checkpoints)"
        f"\npolicy, a Hugging Face folder: {run_dir / 'policy'}\nreport: {report_path}",
        markup=False,
    )


if __name__ == "__main__":
    cli.start("arithmetic", main, Config(), QUICK, program)

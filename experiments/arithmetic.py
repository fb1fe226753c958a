"""RL with FADE in one compiled program: column addition, or your own model and data.

Without flags: a small decoder is warm-started on careless demonstrations of 3-digit
addition with working, and then trained by RL against an in-graph verifier. With --model
and --data: the policy of a Hugging Face folder on your own problems, no warm start.

Result: see LOG.md, 2026-11-21.
Run:  python -m experiments.arithmetic
Smoke: python -m experiments.arithmetic --quick
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import optax
import rich.console

from experiments import cli
from experiments import column_addition as addition
from rljax import (
    algorithms,
    data,
    evaluate,
    folder,
    loop,
    loss,
    plan,
    report,
    train,
    update,
    verify,
)
from rljax.advantage import Term, algorithm, token_mean
from rljax.policy import DecoderConfig, Policy, decoder_policy, hugging_face
from rljax.sample import sampler
from rljax.tokenizer import load_tokenizer
from rljax.types import Prompts, TrainState


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
    """number: the completion is the answer's number; last-number: its last number is;
    exact: the same text; contains: the completion contains --needle."""
    after: str = ""
    """number, last-number: read only what follows the first occurrence of this."""
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
    """Of sampling."""
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


class Task(NamedTuple):
    """What is trained on what: everything that comes from files or is made instead.

    loaded: parameters from files, or None. init: (loaded, key) -> params.
    group: name and value per test problem, to split pass@1 by.
    """

    tokenizer: Any
    decoder: DecoderConfig
    loaded: Any
    init: Callable[[Any, jax.Array], Any]
    policy: Policy
    verify: verify.Verifier
    train: Prompts
    validation: Prompts
    test: Prompts
    group: tuple[str, np.ndarray] | None = None


def build_addition(config: Config) -> Task:
    """Column addition for a new small decoder."""
    tokenizer = addition.tokenizer()
    decoder = DecoderConfig(
        vocab_size=len(tokenizer),
        num_layers=config.num_layers,
        d_model=config.d_model,
        num_heads=config.num_heads,
        num_kv_heads=config.num_heads,
        head_dim=config.d_model // config.num_heads,
        d_ff=config.d_ff,
        rope_theta=100.0,  # 20 positions: slower rotations would tell nothing apart
        initializer_std=config.d_model**-0.5,  # 0.02 is made for widths of 2,000
    )
    policy = decoder_policy(decoder)
    splits = addition.splits(
        num_validation=config.num_validation, num_test=config.num_test
    )
    return Task(
        tokenizer,
        decoder,
        None,
        lambda loaded, key: policy.init(key),
        policy,
        verify.number(verify.token_bytes(tokenizer), after=b"="),
        *splits,
        group=("carries", splits.test.data["carries"]),
    )


def build_own(config: Config) -> Task:
    """A Hugging Face folder and a JSONL file; checks both before anything compiles."""
    if config.model is None or config.data is None:
        raise ValueError(
            f"--model and --data go together, got --model {config.model} and --data"
            f" {config.data}; pass both, or neither for column addition."
        )
    tokenizer = load_tokenizer(config.model)
    problems = data.read_jsonl(
        config.data, config.question, config.answer, answer_after=config.answer_after
    )
    if config.verifier in ("number", "last-number"):
        require_numbers(problems)
    prompts, encoding = data.encode_prompts(
        problems, tokenizer, config.max_prompt_tokens, template=config.template
    )
    print(f"{config.data}: {encoding}")
    held_out = config.num_validation + config.num_test
    order = np.random.default_rng(0).permutation(len(prompts.id))
    if len(order) < held_out + config.num_prompts:
        raise ValueError(
            f"{config.data} must have at least {held_out + config.num_prompts} problems"
            f" (--num-validation + --num-test + --num-prompts), got {len(order)};"
            " lower these."
        )
    parts = np.split(order, [config.num_validation, held_out])
    validation, test, rest = (
        jax.tree.map(lambda x, rows=rows: x[rows], prompts) for rows in parts
    )
    decoder, params = hugging_face.load(config.model)
    require_positions(config, config.model)
    return Task(
        tokenizer,
        decoder,
        params,
        lambda loaded, key: loaded,
        decoder_policy(decoder),
        own_verifier(config, verify.token_bytes(tokenizer)),
        rest,
        validation,
        test,
    )


def require_positions(config: Config, model: pathlib.Path) -> None:
    """Beyond the positions it was trained on a model writes nonsense."""
    entries = json.loads((model / "config.json").read_text())
    limit = entries.get("max_position_embeddings", math.inf)
    if config.max_prompt_tokens + config.max_tokens > limit:
        raise ValueError(
            f"--max-prompt-tokens {config.max_prompt_tokens} + --max-tokens"
            f" {config.max_tokens} must be at most {limit}, the max_position_embeddings"
            f" of {model}; lower one of them."
        )


def require_numbers(problems: list[data.Problem]) -> None:
    """An answer that is no number can never be matched: better said before the run."""
    bad = [
        p.answer for p in problems if verify.twin.read_number(p.answer.encode()) is None
    ]
    if bad:
        raise ValueError(
            f"--verifier number and last-number need answers that are numbers, but"
            f" {len(bad)} of {len(problems)} are not, such as {bad[0]!r}; pass"
            " --answer-after MARKER, or --verifier exact."
        )


def own_verifier(config: Config, table: verify.TokenBytes) -> verify.Verifier:
    """The verifier that the flags name."""
    if config.verifier == "exact":
        return verify.exact(table)
    if config.verifier == "contains":
        return verify.contains(table, config.needle.encode())
    number = verify.number if config.verifier == "number" else verify.last_number
    return number(table, after=config.after.encode())


def build(config: Config) -> Task:
    """The task that the config asks for."""
    own = config.model is not None or config.data is not None
    return build_own(config) if own else build_addition(config)


def warm_learner(config: Config, policy: Policy) -> update.Learner:
    """Supervised learning of demonstrations, as an algorithm like any other."""
    rate = optax.warmup_cosine_decay_schedule(
        0.0,
        config.warm_learning_rate,
        min(30, config.warm_steps // 2),
        config.warm_steps,
        0.05 * config.warm_learning_rate,
    )
    sft = algorithm(nll=Term(loss.nll(), weighting=token_mean()))
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


def program(config: Config | None = None, task: Task | None = None) -> plan.Program:
    """RL: sampler, verifier and update, and what they start from."""
    config = Config() if config is None else config
    task = build(config) if task is None else task
    learner = rl_learner(config, task.policy)
    sample = sampler(
        task.policy,
        num_samples=config.num_samples,
        max_tokens=config.max_tokens,
        stop_tokens=(task.tokenizer.eos_token_id,),
        temperature=config.temperature,
        num_slots=config.num_slots,
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    shape = (config.steps_per_dispatch, config.num_prompts)
    return plan.Program(
        act=loop.actor(task.policy, sample),
        learner=learner,
        verify=task.verify,
        state=jax.eval_shape(
            lambda key: learner.init(task.init(task.loaded, key), key), key
        ),
        prompts=jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((*shape, *x.shape[1:]), x.dtype), task.train
        ),
        sizes=plan.Sizes(
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


class Judge:
    """Asks a policy held-out problems, in batches of one shape: two programs in all."""

    def __init__(self, config: Config, task: Task):
        self._task, self._size = task, config.num_validation
        common = {
            "max_tokens": config.max_tokens,
            "stop_tokens": (task.tokenizer.eos_token_id,),
        }
        policy = task.policy
        self._sampled = self._program(sampler(policy, num_samples=8, **common))
        self._greedy = self._program(
            sampler(policy, num_samples=1, temperature=0, **common)
        )

    def _program(self, sample):
        def ask(params, prompts):
            # One fixed key: stages of a run are compared on the same noise.
            samples, _ = sample(params, prompts, jax.random.key(20_000))
            return self._task.verify(prompts, samples).correct, samples

        return jax.jit(ask)

    def _ask(self, program, params, prompts):
        rows = len(prompts.id)
        size = min(self._size, rows)
        # The last batch is moved back to have full size: some rows are asked twice.
        starts = [min(i, rows - size) for i in range(0, rows, size)]
        out = [
            jax.device_get(
                program(params, jax.tree.map(lambda x, i=i: x[i : i + size], prompts))
            )
            for i in starts
        ]
        new = [slice(max(0, i - s), None) for i, s in zip(range(0, rows, size), starts)]
        return jax.tree.map(
            lambda *x: np.concatenate([y[n] for y, n in zip(x, new, strict=True)]), *out
        )

    def validation(self, params) -> Mapping[str, float]:
        """Metrics for the curves."""
        correct, samples = self._ask(self._sampled, params, self._task.validation)
        length = np.mean(np.sum(samples.mask, -1))
        return evaluate.summary(correct) | {"length_mean": float(length)}

    def test(self, params) -> tuple[evaluate.Stage, list[report.Completion]]:
        """The stage for the table at the end, and some completions with verdicts."""
        task = self._task
        correct, samples = self._ask(self._sampled, params, task.test)
        greedy, _ = self._ask(self._greedy, params, task.test)
        shown = [
            report.Completion(
                stage="after RL",
                prompt=_text(task, task.test.tokens[i][: task.test.length[i]]),
                text=_text(task, samples.tokens[i, 0][samples.mask[i, 0]]),
                answer=bytes(task.test.data["answer"][i]).rstrip(b"\0").decode(),
                correct=bool(correct[i, 0]),
            )
            for i in range(min(12, len(correct)))
        ]
        return evaluate.Stage(correct, greedy[:, 0]), shown


def _text(task: Task, tokens) -> str:
    return task.tokenizer.decode(tokens, skip_special_tokens=False)


def phases(config: Config, task: Task, judge: Judge, run_dir) -> list[train.Phase]:
    """Warm start, if the policy needs one, and RL."""
    warm = config.warm_steps > 0 and config.model is None

    def evaluation(state: TrainState, start_of_rl: bool):
        if start_of_rl:
            _save_stage(run_dir, judge.test(state.params)[0])
        return judge.validation(state.params)

    learner = rl_learner(config, task.policy)
    begin = jax.jit(
        lambda s: learner.init(s.params, jax.random.fold_in(s.key, 1)), donate_argnums=0
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
    task = build(config)
    run_dir = folder.open_run(run_dir, config, resume=resume)
    judge = Judge(config, task)
    parts = phases(config, task, judge, run_dir)
    first = (warm_learner if len(parts) > 1 else rl_learner)(config, task.policy)
    make = jax.jit(
        lambda loaded, key: first.init(
            task.init(loaded, key), jax.random.fold_in(key, 0)
        )
    )
    state = train.train(
        parts,
        make(task.loaded, jax.random.key(config.seed)),
        run_dir,
        checkpoint_every=config.checkpoint_every,
        keep=config.keep,
    )
    if not (run_dir / "policy").exists():  # a finished run that was resumed has it
        hugging_face.save(
            run_dir / "policy", task.decoder, state.params, tokenizer=task.tokenizer
        )
    after, completions = judge.test(state.params)
    before = "warm start" if len(parts) > 1 else "before"
    stages = {before: _load_stage(run_dir), "after RL": after}
    tables = [evaluate.compare(stages)]
    if task.group is not None:
        tables.append(evaluate.compare_by_group(stages, task.group[1], task.group[0]))
    path = report.write_report(
        run_dir, title="RL with FADE", tables=tables, completions=completions
    )
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


def _save_stage(run_dir: pathlib.Path, stage: evaluate.Stage) -> None:
    new = run_dir / "before.new.npz"
    np.savez(new, correct=stage.correct, greedy=stage.greedy)
    new.rename(run_dir / "before.npz")


def _load_stage(run_dir: pathlib.Path) -> evaluate.Stage:
    with np.load(run_dir / "before.npz") as file:
        return evaluate.Stage(file["correct"], file["greedy"])


if __name__ == "__main__":
    cli.start("arithmetic", main, Config(), QUICK, program)

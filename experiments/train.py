"""Your own model on your own problems, with any recipe of rljax.algorithms.

--model is a Hugging Face folder, --data a JSONL file with a problem per line. Without
them a new tiny decoder learns one-digit sums, to try a recipe. `--algorithm NAME
--help` shows the numbers of a recipe.

Run:    python -m experiments.train --model DIR --data FILE --algorithm grpo
Smoke:  python -m experiments.train --quick
"""

import argparse
import contextlib
import dataclasses
import functools
import pathlib
import sys
from typing import Annotated, Any, Literal

import tyro

from experiments import assemble, cli, problems, ranges, recipes, transforms
from rljax.experiment import Experiment


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Every number of the run."""

    seed: int = 0
    """Of parameters, data order and sampling."""

    # Model, problems, verifier
    model: pathlib.Path | None = None
    """Hugging Face folder of a Llama-type model."""
    data: pathlib.Path | None = None
    """JSONL file of problems."""
    test_data: pathlib.Path | None = None
    """JSONL file of the problems to report, at most --num-test of them; none is
    trained on. None: some of --data are held out."""
    question: str = "question"
    """Field with the question: a text, messages for --chat, or token ids."""
    answer: str = "answer"
    """Field with the reference answer."""
    answer_after: str | None = None
    """Marker before the answer, #### for GSM8K."""
    demonstration: str | None = None
    """Field with a worked solution, to imitate."""
    template: str = "{question}"
    """Text of the prompt around the question; with --chat, of the user's message."""
    chat: bool = False
    """Write prompts by the chat template of the model's tokenizer."""
    system: str | None = None
    """--chat: the system's message, where a conversation has none of its own."""
    template_args: tuple[str, ...] = ()
    """--chat: what the template takes, NAME=JSON such as enable_thinking=false."""
    stop: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A text that ends a completion, beside the model's end tokens; may come several
    times. The verifier reads what stands before it."""
    verifier: Literal["number", "last-number", "exact", "contains", "python"] = "number"
    """number: the completion is the answer's number, or has it after --after;
    last-number: its last number is, or the one in its last \\boxed{}; exact: the same
    text; contains: the completion contains --needle; python: what --reward says."""
    after: str = ""
    """number: read the number right after the last occurrence of this, whatever text
    follows it (#### for GSM8K, \\boxed{ for LaTeX); last-number: read only what follows
    the first occurrence."""
    needle: str = ""
    """contains: the text to look for."""
    reward: str = "experiments.reward:exact"
    """python: module:function of (completion, answer) -> float, right from 1 on."""
    num_workers: int = 2
    """python: processes."""
    timeout: float = 10.0
    """python: of one call, seconds."""
    max_prompt_tokens: int = 256
    """Longer prompts are dropped and counted."""

    # Number formats and memory
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of activations; sums, logits and losses are float32."""
    attention: Literal["auto", "whole", "blocks", "splash", "cudnn"] = "auto"
    """Of prompts and of training: all scores at once, blocks of them, or a kernel,
    splash on TPUs, cudnn on GPUs. auto: whole for up to 1,024 tokens, else blocks."""
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of parameters; those in bfloat16 have float32 copies in the optimiser's state."""
    save_dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Of the saved policy; None: as the folder of --model says of itself."""
    rollout_weights: Literal["exact", "int8"] = "exact"
    """Of the layers, as each decode step reads them. int8: a quarter of the bytes; the
    samples' scores are measured again, the difference is reported as mismatch/..., and
    tokens weigh by it, at most twice (TIS)."""
    remat: Literal["none", "layers"] | None = None
    """layers: the inside of each layer is computed again backward, for memory. None:
    layers with --model, none without."""
    unroll: int | None = None
    """Layers compiled side by side, a divisor of their number; None: 1 with remat, else
    all of up to 8."""
    optimizer: Literal["adamw", "adafactor"] = "adamw"
    """adamw: two moments per parameter; adafactor: the second as rows and columns."""
    mu_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the first moment."""

    # The recipe
    algorithm: str = "grpo"
    """Name of a recipe; its numbers are --algorithm.NAME."""
    num_steps: int = 400
    """Training steps: rollout batches."""
    steps_per_dispatch: int = 1
    """Training steps per call of the compiled program."""
    num_prompts: int = 64
    """Prompts that are trained on per step."""
    draw_prompts: int | None = None
    """Prompts that are sampled per step; of these --num-prompts with mixed groups are
    trained on (dynamic sampling). None: all are."""
    num_samples: int = 8
    """Samples per prompt; a stored answer comes beside them."""
    max_tokens: int = 512
    """Longest completion, tokens, the end token included."""
    temperature: float = 1.0
    """Of the policy that is sampled and trained, above 0."""
    num_passes: int = 1
    """Passes over each rollout batch."""
    num_minibatches: int = 1
    """Optimiser steps per pass."""
    num_microbatches: int = 1
    """Pieces of a minibatch that are in memory at once."""
    num_lengths: int = 1
    """Further pieces by length."""
    num_group_parts: int = 1
    """Further pieces along the samples; times --num-lengths a divisor of
    --num-samples."""
    num_slots: int | None = None
    """Completions sampled at a time; None: all at once, but in evaluations of a --model
    half of them."""
    staleness: int | None = None
    """Updates by which sampling is ahead of learning; it may then have devices of its
    own, --sampler-mesh. None: they take turns, in one program."""
    learning_rate: float = 1e-6
    """Peak; after 10 optimiser steps linear to 10 %, and then constant."""
    schedule_steps: int | None = None
    """Training steps until the rate is at 10 %; None: --num-steps. A run of fewer steps
    can be prolonged: --resume --num-steps MORE --schedule-steps THE SAME."""
    gradient_clip: float = 1.0
    """Largest global norm of a gradient."""
    target_kl: float | None = None
    """Nats; a minibatch beyond ends the updates."""
    target_kl_per_pass: float | None = None
    """Nats; no further pass beyond."""
    gradient_gate: float | None = None
    """Standard deviations; see gradient_gate."""

    # LoRA, and a reference that follows
    lora_rank: int | None = None
    """Train adapters of this rank, the model stays; None: train the model."""
    lora_alpha: float = 32.0
    """Their product is scaled by this / rank."""
    lora_targets: str = "q,k,v,o,gate,up,down"
    """Matrices of the layers that get one, by name."""
    reference_every: int | None = None
    """Training steps after which the reference, where a recipe reads one, becomes the
    policy, or with --reference-ema comes closer; None: it stays as it began."""
    reference_ema: float | None = None
    """Share of itself that the reference keeps each time, from 0 to below 1."""

    # Mixtures of experts
    replay_routes: bool = False
    """The update computes each token by the experts that sampled it."""

    # Evaluation and checkpoints
    evaluate_every: int = 20
    """Training steps between evaluations."""
    evaluation_temperature: float = 1.0
    """Of the samples that are judged, above 0."""
    evaluation_samples: int = 8
    """Completions per held-out problem; as many at a time as in training."""
    num_validation: int = 128
    """Held-out problems of each evaluation."""
    num_test: int = 512
    """Held-out problems of the table of the policy before and after; 0 for none."""
    checkpoint_every: int = 20
    """Training steps between checkpoints."""
    keep: int = 3
    """Checkpoints kept."""


# Without --model and --data the whole path in seconds.
QUICK: dict[str, Any] = {
    "num_steps": 4,
    "num_prompts": 8,
    "num_samples": 4,
    "max_tokens": 4,
    "max_prompt_tokens": 8,
    "learning_rate": 1e-3,
    "num_validation": 8,
    "num_test": 8,
    "evaluate_every": 2,
    "checkpoint_every": 2,
}


def check(c: Config) -> None:
    """Raises ValueError for numbers and texts that no run can begin with."""
    ranges.step(c)
    recipes.require(c.algorithm)
    ranges.tokens(c, "num_prompts", "steps_per_dispatch", "max_prompt_tokens")
    ranges.product(
        c, 2**31 - 1, "a 32-bit counter", "num_steps", "num_passes", "num_minibatches"
    )
    if c.draw_prompts is not None and c.draw_prompts < c.num_prompts:
        raise ValueError(
            f"--draw-prompts must be at least --num-prompts {c.num_prompts}, got"
            f" {c.draw_prompts}; draw more."
        )
    transforms.check(c)
    problems.check(c)


def build(c: Config, resources: contextlib.ExitStack | None = None) -> list[Experiment]:
    """The run; `resources` closes a verifier in Python after it."""
    check(c)
    return [assemble.experiment(c, *problems.build(c, resources))]


def with_numbers(name: str, base: type) -> type:
    """The configuration with the numbers of a recipe in `numbers`."""
    own = recipes.numbers_of(name)
    required = [
        f.name for f in dataclasses.fields(own) if f.default is dataclasses.MISSING
    ]
    numbers = own(**dict.fromkeys(required, tyro.MISSING))
    hint = Annotated[own, tyro.conf.arg(name="algorithm")]
    field = ("numbers", hint, dataclasses.field(default=numbers))
    return dataclasses.make_dataclass(
        "Config", [field], bases=(base,), frozen=True, kw_only=True
    )


def named(arguments: list[str]) -> str:
    """The recipe that the command line names."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--algorithm", default=Config.algorithm)
    return parser.parse_known_args(arguments)[0].algorithm


def main() -> None:
    """The command line: the flags depend on the recipe that it names."""
    try:
        make = with_numbers(name := named(sys.argv[1:]), Config)
    except ValueError as error:
        cli.fail(error)
    with contextlib.ExitStack() as resources:
        cli.main(
            "train",
            functools.partial(build, resources=resources),
            make(algorithm=name),
            make(algorithm=name, **QUICK),
            __doc__ or "",
        )


if __name__ == "__main__":
    main()

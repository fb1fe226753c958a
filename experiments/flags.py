"""The flags of `experiments.train`: every number and name of a run, and its meaning.

Functions are chosen in Python; the names here exist on the command line alone.
"""

import dataclasses
import pathlib
from typing import Literal

import tyro


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Every number of the run."""

    seed: int = 0
    """Seed for parameters, data order and sampling."""

    # Model, problems, verifier
    model: pathlib.Path | None = None
    """Hugging Face folder of a Llama-type model."""
    data: pathlib.Path | None = None
    """JSONL file of problems."""
    test_data: pathlib.Path | None = None
    """JSONL file of test problems, of which at most --num-test are used; none is
    trained on. None: hold out some of --data."""
    question: str = "question"
    """Field with the question: a text, messages for --chat, or token ids."""
    answer: str = "answer"
    """Field with the reference answer."""
    answer_after: str | None = None
    """Marker before the answer in its field, such as #### in GSM8K."""
    demonstration: str | None = None
    """Field with a worked solution, for recipes that imitate."""
    template: str = "{question}"
    """The prompt, with {question} for the question; with --chat, the user's message."""
    chat: bool = False
    """Format prompts with the chat template of the model's tokenizer."""
    system: str | None = None
    """--chat: system message for conversations that have none."""
    template_args: tuple[str, ...] = ()
    """--chat: arguments of the template, NAME=JSON, such as enable_thinking=false."""
    stop: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A text that ends a completion, beside the model's end tokens; may be given
    several times. The verifier reads the text before it."""
    verifier: Literal["number", "last-number", "exact", "contains", "python"] = "number"
    """number: the completion, or its number after --after, equals the answer's number;
    last-number: its last number, or the one in its last \\boxed{}, does; exact: the
    texts are equal; contains: the completion contains --needle; python: --reward
    decides."""
    after: str = ""
    """number: read the number right after the last occurrence of this text, and ignore
    what follows (#### for GSM8K, \\boxed{ for LaTeX); last-number: read only the text
    after its first occurrence."""
    needle: str = ""
    """contains: the text to look for."""
    reward: str = "experiments.reward:exact"
    """python: module:function of (completion, answer) -> float; 1 or more is right."""
    num_workers: int = 2
    """python: number of processes."""
    timeout: float = 10.0
    """python: seconds for one call."""
    max_prompt_tokens: int = 256
    """Longer prompts are dropped, and their number is reported."""

    # Number formats and memory
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Format of activations; sums, logits and losses are float32."""
    attention: Literal["auto", "whole", "blocks", "splash", "cudnn"] = "auto"
    """Attention in prefill and training. whole: all scores at once; blocks: a block at
    a time; splash, cudnn: kernels for TPUs and GPUs. auto: whole for up to 1,024
    tokens, else blocks."""
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    """Format of parameters; with bfloat16 the optimiser's state has float32 copies."""
    save_dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Format of the saved policy; None: as in config.json of --model."""
    rollout_weights: Literal["exact", "int8"] = "exact"
    """Format in which decode steps read the layers' weights. int8: a quarter of the
    bytes; the samples' log-probabilities are then measured again, their difference is
    reported as mismatch/..., and tokens get importance weights of at most 2 (TIS)."""
    remat: Literal["none", "layers"] | None = None
    """layers: recompute the inside of each layer in the backward pass, to save memory.
    None: layers with --model, none without."""
    unroll: int | None = None
    """Layers to unroll in the scan over layers; divides their number. None: 1 with
    remat or more than 8 layers, else all."""
    optimizer: Literal["adamw", "adafactor"] = "adamw"
    """adamw: two moments per parameter; adafactor: a factored second moment."""
    mu_dtype: Literal["float32", "bfloat16"] = "float32"
    """Format of the optimiser's first moment."""

    # The recipe
    algorithm: str = "grpo"
    """Name of a recipe; its numbers are --algorithm.NAME."""
    num_steps: int = 400
    """Training steps: rollout batches."""
    steps_per_dispatch: int = 1
    """Training steps per call of the compiled program."""
    num_prompts: int = 64
    """Prompts per training step."""
    draw_prompts: int | None = None
    """Prompts to sample per training step, of which --num-prompts with mixed groups are
    trained on (dynamic sampling). None: no dynamic sampling."""
    num_samples: int = 8
    """Samples per prompt, not counting a stored answer."""
    max_tokens: int = 512
    """Longest completion, tokens, with the end token."""
    temperature: float = 1.0
    """Temperature of the policy, in sampling and training; above 0."""
    num_passes: int = 1
    """Passes over each rollout batch."""
    num_minibatches: int = 1
    """Optimiser steps per pass."""
    num_microbatches: int = 1
    """Parts of a minibatch, computed in turn to save memory."""
    num_lengths: int = 1
    """Further parts, by length of the samples."""
    num_group_parts: int = 1
    """Further parts, by index of the samples; the product with --num-lengths must
    divide --num-samples."""
    num_slots: int | None = None
    """Completions sampled at a time; None: all at once, but in evaluations of a --model
    half of them if these are at least 128."""
    staleness: int | None = None
    """Updates by which the sampler is ahead of the learner; it may have its own devices
    (--sampler-mesh). None: sampler and learner take turns, in one program."""
    learning_rate: float = 1e-6
    """Peak learning rate; 10 optimiser steps of warm-up, linear decay to 10 %, then
    constant."""
    schedule_steps: int | None = None
    """Training steps until the learning rate is at 10 %; None: --num-steps. Such a run
    can be prolonged: --resume --num-steps MORE, with the same --schedule-steps."""
    gradient_clip: float = 1.0
    """Maximum global norm of a gradient."""
    target_kl: float | None = None
    """KL from the sampling policy, nats, above which a minibatch is refused and the
    updates of its batch end."""
    target_kl_per_pass: float | None = None
    """KL from the sampling policy, nats, above which no further pass starts."""
    gradient_gate: float | None = None
    """Refuse updates whose gradient deviates, in standard deviations; see
    rljax.learn.gate.gradient_gate."""

    # LoRA, and updates of the reference policy
    lora_rank: int | None = None
    """Train LoRA adapters of this rank; None: train the whole model."""
    lora_alpha: float = 32.0
    """The adapters' product is scaled by alpha / rank."""
    lora_targets: str = "q,k,v,o,gate,up,down"
    """Matrices of the layers that get adapters, comma-separated."""
    adapters: pathlib.Path | None = None
    """Folder of LoRA adapters of --model in PEFT's format, to train on. It says their
    rank, alpha and targets. A reference has them, too."""
    reference_every: int | None = None
    """Training steps between updates of the reference, if the recipe reads one. It
    becomes the policy, or moves towards it with --reference-ema. None: it is fixed."""
    reference_ema: float | None = None
    """Weight of the old reference in each update, in [0, 1)."""

    # Mixtures of experts
    replay_routes: bool = False
    """Compute each token in the update by the experts that sampled it."""

    # Evaluation and checkpoints
    evaluate_every: int = 20
    """Training steps between evaluations."""
    evaluation_temperature: float = 1.0
    """Temperature of samples in evaluations, above 0."""
    evaluation_samples: int = 8
    """Completions per held-out problem."""
    num_validation: int = 128
    """Held-out problems per evaluation."""
    num_test: int = 512
    """Held-out problems for the table of the policy before and after; 0: no table."""
    checkpoint_every: int = 20
    """Training steps between checkpoints."""
    keep: int = 3
    """Checkpoints to keep."""

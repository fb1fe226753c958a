"""Checks the values of a configuration before anything is built.

`RANGES` has a range for every number of every experiment, by the name of its field. The
functions below check relations between numbers. All checks are cheap.
"""

import dataclasses
import functools
import math
import pathlib
import types
import typing
from typing import Any

from rljax import check
from rljax.task import addition as task

# With seeds up to this, random keys, shuffles and their sums stay below 2**31.
_SEEDS = 2_000_000_000
# Larger counts would overflow 32-bit sizes or any machine's memory.
_MANY, _STEPS = 2**20, 2**30


def _count(low: int = 1, high: int = _MANY):
    return functools.partial(check.count, low=low, high=high)


def _number(**bounds):
    return functools.partial(check.number, **bounds)


# A rate of 0 changes nothing; one above 1 makes AdamW diverge.
_RATE = _number(above=0, high=1)
_SHARE = _number(low=0, high=1)

RANGES = {
    "seed": _count(0, _SEEDS),
    "seeds": _count(1, 10_000),
    "max_prompt_tokens": _count(),
    "num_workers": _count(1, 4096),
    "timeout": _number(above=0, high=1e6),
    "num_layers": _count(1, 1000),
    "d_model": _count(2),
    "num_heads": _count(),
    "d_ff": _count(),
    "warm_steps": _count(0, _STEPS),
    "warm_prompts": _count(),
    "warm_learning_rate": _RATE,
    "forget": _SHARE,
    "slip": _SHARE,
    "stage_steps": _count(1, _STEPS),
    "num_steps": _count(1, _STEPS),
    "steps_per_dispatch": _count(),
    "num_prompts": _count(),
    # Advantages compare the samples of a group, so one sample is not enough.
    "num_samples": _count(2),
    "draw_prompts": _count(),
    "max_tokens": _count(),
    # At 0 all samples of a group would be equal, and nothing could be learned.
    "temperature": _number(above=0, high=100),
    "evaluation_temperature": _number(above=0, high=100),
    "num_passes": _count(),
    "num_minibatches": _count(),
    "num_microbatches": _count(),
    "num_lengths": _count(),
    "num_group_parts": _count(),
    "num_slots": _count(),
    "staleness": _count(0, 64),
    "unroll": _count(),
    "learning_rate": _RATE,
    "gradient_clip": _number(above=0),
    "clip": _number(above=0, high=1),
    "entropy_target": _number(low=0),
    "ema_rate": _RATE,
    "target_kl": _number(low=0),
    "target_kl_per_pass": _number(low=0),
    "gradient_gate": _number(low=-1e6, high=1e6),
    "lora_rank": _count(1, 4096),
    "lora_alpha": _number(above=0, high=1e6),
    "reference_every": _count(1, _STEPS),
    "reference_ema": _number(low=0, below=1),
    "schedule_steps": _count(1, _STEPS),
    "evaluate_every": _count(1, _STEPS),
    "evaluation_samples": _count(),
    "evaluation_batch": _count(),
    "num_validation": _count(),
    "num_test": _count(0),
    "checkpoint_every": _count(1, _STEPS),
    "keep": _count(),
}


def require(config: Any) -> None:
    """Raises ValueError, naming the flag, if a field has a wrong type or range.

    Args:
      config: a flat dataclass. The annotation of a field gives its type: str, a tuple
        of str, Literal, Path, bool, or a number with an entry in `RANGES`. None is
        allowed if the annotation includes it.
    """
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        _require_field(field.name, hints[field.name], vars(config)[field.name])


def _require_field(name: str, hint: Any, value: Any) -> None:
    kinds = (hint,)
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        kinds = typing.get_args(hint)
        hint = kinds[0]
    if value is None and type(None) in kinds:
        return
    if typing.get_origin(hint) is typing.Literal:
        options = typing.get_args(hint)
        if value not in options:
            check.refuse(flag(name), f"be one of {', '.join(options)}", value)
    elif typing.get_origin(hint) is tuple:
        check.kind(flag(name), value, tuple, "('text',)")
        for text in value:
            check.text(flag(name), text)
    elif bool in kinds:
        check.kind(flag(name), value, bool, "True")
    elif str in kinds:
        check.text(flag(name), value)
    elif pathlib.Path in kinds:
        check.kind(flag(name), value, pathlib.Path, "Path('folder')")
    elif dataclasses.is_dataclass(hint):  # the recipe checks its own numbers
        return
    else:
        RANGES[name](flag(name), value)


def flag(name: str) -> str:
    """--num-steps for num_steps."""
    return f"--{name.replace('_', '-')}"


def together(config: Any, names: tuple[str, ...], needed: str, there: bool) -> None:
    """Raises ValueError for flags that nothing reads without the flag `needed`.

    Args:
      config: with the flags.
      names: of the fields that only something else reads.
      needed: the flags that this takes, as on the command line.
      there: whether they are given.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for name in names:
        value = vars(config)[name]
        if not there and value != defaults[name]:
            raise ValueError(
                f"{flag(name)} must come with {needed}, got {value!r} without it; add"
                f" {needed}, or leave {flag(name)} out."
            )


def multiple(config: Any, name: str, *parts: str) -> None:
    """Raises ValueError unless a number is a multiple of the product of others."""
    numbers = [vars(config)[part] for part in parts]
    value = vars(config)[name]
    if value % math.prod(numbers):
        given = " * ".join(
            f"{flag(p)} {n}" for p, n in zip(parts, numbers, strict=True)
        )
        raise ValueError(
            f"{flag(name)} must be a multiple of {given}, got {value}; change one of"
            " them."
        )


def product(config: Any, limit: int, what: str, *names: str) -> None:
    """Raises ValueError if the product of fields exceeds `limit`, named by `what`."""
    _at_most(config, limit, what, names, math.prod, " * ")


def total(config: Any, limit: int, what: str, *names: str) -> None:
    """Raises ValueError if the sum of fields exceeds `limit`, named by `what`."""
    _at_most(config, limit, what, names, sum, " + ")


def tokens(config: Any, *names: str) -> None:
    """Raises ValueError if an array with these sizes would overflow a 32-bit index."""
    product(config, 2**31 - 1, "the largest 32-bit index", *names)


def _at_most(config, limit, what, names, fn, sign):
    numbers = [vars(config)[name] for name in names]
    if fn(numbers) > limit:
        given = sign.join(f"{flag(n)} {x}" for n, x in zip(names, numbers, strict=True))
        raise ValueError(
            f"{given} must be at most {limit}, {what}, got {fn(numbers)}; lower"
            f" {'one of them' if len(names) > 1 else 'it'}."
        )


def heads(config: Any) -> None:
    """Raises ValueError unless the width of an attention head is even and not 0."""
    width, number = config.d_model, config.num_heads
    if width // number < 2 or (width // number) % 2:
        raise ValueError(
            "--d-model // --num-heads, the width of a head, must be even and at least"
            f" 2, got {width} // {number} = {width // number}; change one of them."
        )


def step(config: Any) -> None:
    """Raises ValueError for numbers with which no RL run can start.

    It reads no file and makes no folder, so call it first.
    """
    require(config)
    multiple(config, "num_steps", "steps_per_dispatch")
    multiple(config, "num_prompts", "num_minibatches", "num_microbatches")
    parts = [n for n in ("num_lengths", "num_group_parts") if n in vars(config)]
    multiple(config, "num_samples", *parts)
    tokens(config, "num_prompts", "num_samples", "max_tokens")
    for held_out in ("num_validation", "num_test", "evaluation_batch"):
        if held_out in vars(config):
            tokens(config, held_out, "max_tokens")
    product(config, 2**31 - 1, "a 32-bit counter", "num_steps", "num_minibatches")


def addition(config: Any) -> None:
    """`step`, and checks for column addition: sizes of the decoder, enough problems."""
    step(config)
    heads(config)
    multiple(config, "warm_steps", "steps_per_dispatch")
    problems(config)


def problems(config: Any) -> None:
    """Raises ValueError if a configuration asks for more additions than there are."""
    for name in ("num_prompts", "warm_prompts"):
        product(config, task.NUM_TRAIN, "the problems to train on", name)
    total(
        config,
        task.NUM_HELD_OUT,
        "the problems not trained on",
        "num_validation",
        "num_test",
    )

"""Trains your own model on your own problems, with any recipe of rljax.algorithms.

--model is a Hugging Face folder, --data a JSONL file with one problem per line. Without
them a new tiny decoder learns one-digit sums, to try a recipe. `--algorithm NAME
--help` shows the numbers of a recipe.

Run:    python -m experiments.train --model DIR --data FILE --algorithm grpo
Smoke:  python -m experiments.train --quick
"""

import argparse
import contextlib
import dataclasses
import functools
import sys
from typing import Annotated, Any

import tyro

from experiments import assemble, cli, problems, ranges, recipes, transforms
from experiments.flags import Config
from rljax.experiment import Experiment

# Without --model and --data, --quick runs the whole experiment in seconds.
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
    """Raises ValueError for numbers and texts with which no run can start."""
    ranges.step(c)
    recipes.require(c.algorithm)
    ranges.tokens(c, "num_prompts", "steps_per_dispatch", "max_prompt_tokens")
    ranges.product(
        c, 2**31 - 1, "a 32-bit counter", "num_steps", "num_passes", "num_minibatches"
    )
    if c.draw_prompts is not None and c.draw_prompts < c.num_prompts:
        raise ValueError(
            f"--draw-prompts must be at least --num-prompts {c.num_prompts}, got"
            f" {c.draw_prompts}; raise it."
        )
    transforms.check(c)
    problems.check(c)


def build(c: Config, resources: contextlib.ExitStack | None = None) -> list[Experiment]:
    """The experiment that a configuration describes.

    Args:
      c: the configuration.
      resources: closes the processes of a verifier in Python.
    """
    check(c)
    return [assemble.experiment(c, *problems.build(c, resources))]


def with_numbers(name: str, base: type) -> type:
    """The configuration class with one more field, `numbers`, for those of a recipe."""
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
    """Parses the command line, whose flags depend on the recipe, and runs."""
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

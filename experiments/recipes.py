"""The recipes of `rljax.algorithms` by name, for the command line alone.

Each has its own numbers as flags, `--algorithm.clip 0.3`, with the text of its
docstring. What a recipe takes besides numbers (functions, transforms) is chosen in
Python, in an experiment of one's own.
"""

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any

import jax
import tyro

from rljax import algorithms
from rljax.advantage import Algorithm

# What a recipe shares with the rest of the run is no number of its own.
SHARED = ("max_tokens", "num_samples")
# Rows that a recipe needs beside, or instead of, the policy's own samples.
STORED = ("asft", "asft_sampled", "dft", "gcsl", "iw_sft", "psft", "sft")
MIXED = ("chord", "gac", "gft", "hpt", "luffy", "mixture", "srft")
GREEDY = ("remax",)
# Those that learn from the policy itself, told the solution.
TEACHER = ("dasd",)
# Those that correct the distance from the sampler to the learner's `old` themselves.
CORRECTING = (
    *("tis", "icepop", "sequence_mask", "geometric_rejection", "sequence_mask_tis"),
    *("truncated_reinforce", "minirl"),
)
# Those that need another learner or act than an experiment of files has.
IN_PYTHON = {"lfu": "rljax.learn.consistency", "uft": "rljax.rollout.hint"}


_ARRAY_LIKE = set(typing.get_args(jax.typing.ArrayLike))


def _kinds(hint: Any) -> set:
    union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    return set(typing.get_args(hint) if union else (hint,))


def _is_number(hint: Any) -> bool:
    kinds = _kinds(hint) - {type(None)}
    return kinds == _ARRAY_LIKE or (bool(kinds) and kinds <= {int, float})


def _flag_type(hint: Any) -> Any:
    """A number that may be traced is a float on the command line."""
    if not _kinds(hint) >= _ARRAY_LIKE:
        return hint
    return float | None if type(None) in _kinds(hint) else float


def _numbers(fn: Callable[..., Algorithm]) -> list[inspect.Parameter]:
    return [
        p
        for p in inspect.signature(fn).parameters.values()
        if p.name not in SHARED
        and p.kind is not inspect.Parameter.VAR_KEYWORD
        and _is_number(p.annotation)
    ]


def _is_recipe(fn: Any) -> bool:
    signature = inspect.signature(fn)
    needed = [
        p
        for p in signature.parameters.values()
        if p.default is p.empty and p.kind is not p.VAR_KEYWORD
    ]
    known = all(p.name in SHARED or _is_number(p.annotation) for p in needed)
    return signature.return_annotation is Algorithm and known


RECIPES: dict[str, Callable[..., Algorithm]] = {
    name: fn
    for name in algorithms.__all__
    if _is_recipe(fn := getattr(algorithms, name)) and name not in IN_PYTHON
}


def numbers_of(name: str) -> type:
    """A frozen dataclass of the recipe's own numbers; those without default have none.

    Raises:
      ValueError: for a name that is no recipe.
    """
    require(name)
    fn, fields = RECIPES[name], []
    texts = _argument_texts(inspect.getdoc(fn) or "")
    for p in _numbers(fn):
        hint = _flag_type(p.annotation)
        text = texts.get(p.name, "see the source")
        annotated = Annotated[hint, tyro.conf.arg(help=text)]
        default = () if p.default is p.empty else (p.default,)
        fields.append((p.name, annotated, *default))
    fields.sort(key=len)  # those without default first
    made = dataclasses.make_dataclass(f"Numbers of {name}", fields, frozen=True)
    made.__doc__ = inspect.getdoc(fn)
    return made


def require(name: str) -> None:
    """Raises ValueError unless the name is a recipe's that the command line offers."""
    if name in IN_PYTHON:
        raise ValueError(
            f"--algorithm must be a recipe that needs no more than numbers, got {name};"
            f" write an experiment with {IN_PYTHON[name]}."
        )
    if name not in RECIPES:
        raise ValueError(
            f"--algorithm must be one of {', '.join(RECIPES)}, got {name!r}; see the"
            " table of methods."
        )


def require_solutions(name: str, given: bool) -> None:
    """Raises ValueError if a recipe learns from worked solutions and there are none."""
    if name in STORED + MIXED + TEACHER and not given:
        raise ValueError(
            f"--algorithm {name} must have worked solutions to learn from, got no"
            " --demonstration; pass the field of the data that holds them."
        )


def make(name: str, numbers: Any, shared: dict[str, int]) -> Algorithm:
    """The algorithm.

    Args:
      numbers: of `numbers_of(name)`.
      shared: the run's own numbers that recipes may ask for, those of `SHARED`.

    Raises:
      ValueError: if the recipe refuses its numbers.
    """
    fn = RECIPES[name]
    asked = {k: v for k, v in shared.items() if k in inspect.signature(fn).parameters}
    try:
        return fn(**asked, **dataclasses.asdict(numbers))
    except ValueError as error:
        raise ValueError(f"--algorithm.{error}") from error


def _argument_texts(text: str) -> dict[str, str]:
    """The entries of a docstring's `Args:` by name; one entry may serve several."""
    found = re.search(r"^Args:\n((?:  .*\n?|\n)*)", text, re.MULTILINE)
    texts = {}
    for entry in re.split(r"\n(?=  \S)", found[1] if found else ""):
        names, colon, words = entry.partition(":")
        if colon:
            words = " ".join(words.split()).replace("%", "%%")
            texts |= {name.strip(): words for name in names.split(",")}
    return texts

"""The recipes of `rljax.algorithms` by name, for the command line only.

The numbers of a recipe are flags such as `--algorithm.clip 0.3`, whose help texts come
from its docstring. To choose a recipe's functions or transforms, write your own
experiment.
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

# Arguments of recipes that are set by the run, and get no flags of their own.
SHARED = ("max_tokens", "num_samples")
# Recipes that learn from stored answers instead of the policy's own samples.
STORED = ("asft", "asft_sampled", "dft", "iw_sft", "psft", "sft")
# Recipes that learn from stored answers beside the policy's own samples.
MIXED = ("chord", "gac", "gft", "hpt", "luffy", "mixture", "srft")
# Recipes that need a greedy completion beside the samples.
GREEDY = ("remax",)
# Recipes whose teacher is the policy itself with the solution in its prompt.
TEACHER = ("dasd",)
# Recipes that correct for a sampler that differs from the policy.
CORRECTING = (
    *("tis", "icepop", "sequence_mask", "geometric_rejection", "sequence_mask_tis"),
    *("truncated_reinforce", "minirl"),
)
# Recipes that need data, a learner or a sampler of their own -> the module that has it.
IN_PYTHON = {
    "gcsl": "rljax.data.relabel",
    "lfu": "rljax.learn.consistency",
    "uft": "rljax.rollout.hint",
}

_ARRAY_LIKE = set(typing.get_args(jax.typing.ArrayLike))


def _kinds(hint: Any) -> set:
    """The members of a union; a set of one for any other type."""
    union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    return set(typing.get_args(hint) if union else (hint,))


def _is_number(hint: Any) -> bool:
    kinds = _kinds(hint) - {type(None)}
    return kinds == _ARRAY_LIKE or (bool(kinds) and kinds <= {int, float})


def _flag_type(hint: Any) -> Any:
    """The type of a flag: numbers that may be traced are floats on the command line."""
    if not _kinds(hint) >= _ARRAY_LIKE:
        return hint
    return float | None if type(None) in _kinds(hint) else float


def _numbers(fn: Callable[..., Algorithm]) -> list[inspect.Parameter]:
    """The parameters of a recipe that become flags."""
    return [
        p
        for p in inspect.signature(fn).parameters.values()
        if p.name not in SHARED and _is_number(p.annotation)
    ]


def _is_recipe(fn: Any) -> bool:
    """Whether a function returns an `Algorithm` and needs only numbers."""
    signature = inspect.signature(fn)
    needed = [p for p in signature.parameters.values() if p.default is p.empty]
    known = all(p.name in SHARED or _is_number(p.annotation) for p in needed)
    return signature.return_annotation is Algorithm and known


RECIPES: dict[str, Callable[..., Algorithm]] = {
    name: fn
    for name in algorithms.__all__
    if _is_recipe(fn := getattr(algorithms, name)) and name not in IN_PYTHON
}


def numbers_of(name: str) -> type:
    """A frozen dataclass with a field for each number of the recipe.

    Fields have the recipe's defaults.

    Raises:
      ValueError: if there is no such recipe.
    """
    require(name)
    fn, fields = RECIPES[name], []
    texts = _argument_texts(inspect.getdoc(fn) or "")
    for p in _numbers(fn):
        hint = _flag_type(p.annotation)
        text = texts[p.name]
        annotated = Annotated[hint, tyro.conf.arg(help=text)]
        default = () if p.default is p.empty else (p.default,)
        fields.append((p.name, annotated, *default))
    fields.sort(key=len)  # dataclasses need fields without default first
    made = dataclasses.make_dataclass(f"Numbers of {name}", fields, frozen=True)
    made.__doc__ = _about(inspect.getdoc(fn) or "")
    return made


def require(name: str) -> None:
    """Raises ValueError unless the command line offers a recipe of this name."""
    if name in IN_PYTHON:
        raise ValueError(
            f"--algorithm must be a recipe that needs only numbers, got {name};"
            f" write an experiment with {IN_PYTHON[name]}."
        )
    if name not in RECIPES:
        raise ValueError(
            f"--algorithm must be one of {', '.join(RECIPES)}, got {name!r}; see"
            " docs/methods.md."
        )


def require_solutions(name: str, given: bool) -> None:
    """Raises ValueError if a recipe needs worked solutions and none are given."""
    if name in STORED + MIXED + TEACHER and not given:
        raise ValueError(
            f"--algorithm {name} must have worked solutions to learn from, got no"
            " --demonstration; pass the field of the data that holds them."
        )


def make(name: str, numbers: Any, shared: dict[str, int]) -> Algorithm:
    """The algorithm of a recipe.

    Args:
      name: of the recipe.
      numbers: an instance of `numbers_of(name)`.
      shared: values of the arguments in `SHARED`.

    Raises:
      ValueError: if the recipe refuses its numbers.
    """
    fn = RECIPES[name]
    asked = {k: v for k, v in shared.items() if k in inspect.signature(fn).parameters}
    try:
        return fn(**asked, **dataclasses.asdict(numbers))
    except ValueError as error:
        raise ValueError(f"--algorithm.{error}") from error


def _about(text: str) -> str:
    """The description and the source in a docstring, which are what --help shows."""
    about = re.split(r"^(?:Args|Source):", text, maxsplit=1, flags=re.MULTILINE)[0]
    source = re.search(r"^Source: .*?(?=^\w+:|\Z)", text, re.MULTILINE | re.DOTALL)
    return about.rstrip() + (f"\n\n{source[0].rstrip()}" if source else "")


def _argument_texts(text: str) -> dict[str, str]:
    """Argument -> text in the docstring's `Args:`; an entry may name several."""
    found = re.search(r"^Args:\n((?:  .*\n?|\n)*)", text, re.MULTILINE)
    texts = {}
    for entry in re.split(r"\n(?=  \S)", found[1] if found else ""):
        names, colon, words = entry.partition(":")
        if colon:
            words = " ".join(words.split()).replace("%", "%%")
            texts |= {name.strip(): words for name in names.split(",")}
    return texts

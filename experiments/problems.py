"""The model and the task of `experiments.train`: from files, or one-digit sums."""

import contextlib
import importlib
import math
import pathlib
import re
import sys
from collections.abc import Callable

from experiments import formats, ranges, recipes
from experiments.flags import Config
from rljax import data, strict_json, verify
from rljax.data import tokenizer
from rljax.model import DecoderConfig, Model, language_model
from rljax.model.hugging_face import metadata
from rljax.task import Task
from rljax.task import problems as own
from rljax.verify.host import pooled

_TINY = DecoderConfig(
    vocab_size=15,
    num_layers=1,
    d_model=32,
    num_heads=2,
    num_kv_heads=2,
    head_dim=16,
    d_ff=32,
)


def check(c: Config) -> None:
    """Raises ValueError for wrong flags on model, data and verifier; reads no file."""
    if (c.model is None) != (c.data is None):
        raise ValueError(
            f"--model and --data must go together, got --model {c.model} and --data"
            f" {c.data}; pass both, or neither to try a recipe on one-digit sums."
        )
    files = ("test_data", "question", "answer", "answer_after", "demonstration")
    ranges.together(c, files, "--data", c.data is not None)
    ranges.together(c, ("system", "template_args"), "--chat", c.chat)
    for names, verifiers in (
        (("needle",), ("contains",)),
        (("after",), ("number", "last-number")),
        (("reward", "num_workers", "timeout"), ("python",)),
    ):
        needed = f"--verifier {' or '.join(verifiers)}"
        ranges.together(c, names, needed, c.verifier in verifiers)
    chat(c)
    if "" in c.stop:
        raise ValueError(
            "--stop must hold at least one character, got '', which would end every"
            " completion at its first token; leave it out."
        )
    if "{question}" not in c.template:
        raise ValueError(
            f"--template must contain {{question}}, got {c.template!r}; put it where"
            " the question belongs."
        )
    for name in ("answer_after", "needle", "demonstration"):
        asked = name != "needle" or c.verifier == "contains"
        if asked and vars(c)[name] == "":
            raise ValueError(
                f"{ranges.flag(name)} must hold at least one character, got ''; pass"
                " the text to look for."
            )


def build(c: Config, resources: contextlib.ExitStack | None) -> tuple[Model, Task]:
    """The model and its task; checks all files before anything is compiled.

    Args:
      c: the configuration.
      resources: closes the processes of a verifier in Python.

    Raises:
      ValueError: naming the file or the flag that is wrong.
    """
    if c.model is None or c.data is None:
        model, problems = _tiny(c)
        model = model._replace(stop_strings=c.stop)
    else:
        print(f"{c.model}: checking the folder ...", flush=True)
        model = formats.load(c)
        stops = dict.fromkeys((*model.stop_strings, *c.stop))
        model = model._replace(stop_strings=tuple(stops))
        require_positions(c, model)
        print(f"{c.model}: {language_model.describe(model)}")
        problems = read(c, c.data)
    test = None if c.test_data is None else read(c, c.test_data)
    if c.verifier in ("number", "last-number"):
        require_numbers(c, [*problems, *(test or ())])
    worked = problems[0].demonstration is not None
    recipes.require_solutions(c.algorithm, worked)
    name = " and ".join(str(f) for f in (c.data, c.test_data) if f) or "one-digit sums"
    count = len(problems) + len(test or ())
    print(f"{name}: encoding {count:,} problems ...", flush=True)
    try:
        parts = own.split(
            problems,
            model,
            max_prompt_tokens=c.max_prompt_tokens,
            num_validation=c.num_validation,
            num_test=c.num_test,
            test=test,
            template=c.template,
            chat=chat(c),
            max_completion_tokens=c.max_tokens if worked else None,
            privileged=c.algorithm in recipes.TEACHER,
        )
    except ValueError as error:  # replace the library's argument names by flags
        text = str(error).replace("max_completion_tokens", "max_tokens")
        text = re.sub(r"\b(num|max)_[a-z_]+", lambda m: ranges.flag(m[0]), text)
        text = text.replace("pass chat=Chat()", "pass --chat")
        files = [file for file in (c.data, c.test_data) if file is not None]
        if any(isinstance(p.question, data.Tokens) for p in problems):
            files = []  # then the numbers in messages count texts only
        text = re.sub(r"\bnumber (\d+)", lambda m: place(files, m), text)
        raise ValueError(f"{name}: {text}") from error
    for note in parts.notes:
        print(f"{name}: {note}")
    needed = max(c.num_prompts, c.draw_prompts or 0)
    if len(parts.train.id) < needed:
        raise ValueError(
            f"{name} must leave at least --num-prompts {needed}"
            f" problems to train on beside --num-validation {c.num_validation} and"
            f" --num-test {c.num_test}, got {len(parts.train.id)}; lower these numbers."
        )
    return model, parts.task(verifier(c, own.text_of(model), resources))


def require_numbers(c: Config, problems: list[data.Problem]) -> None:
    """`task.problems.require_numbers`, with the flags that help in its message."""
    try:
        own.require_numbers(problems)
    except ValueError as error:
        text = str(error).replace("(answer_after)", "(--answer-after)")
        text = text.replace("(verify.exact)", "(--verifier exact)")
        raise ValueError(f"--verifier {c.verifier}: {text}") from error


def read(c: Config, file: pathlib.Path) -> list[data.Problem]:
    """The problems in a file; flags name its fields."""
    return data.read_jsonl(
        file,
        c.question,
        c.answer,
        demonstration=c.demonstration,
        answer_after=c.answer_after,
    )


def place(files: list[pathlib.Path], number: re.Match) -> str:
    """ "number 3" -> "number 3 (file:line)" of that problem, counted over all files."""
    lines = [
        f"{file}:{n}"
        for file in files
        for n, line in enumerate(file.read_bytes().split(b"\n"), 1)
        if line.strip()
    ]
    known = lines[int(number[1]) : int(number[1]) + 1]
    return f"{number[0]} ({known[0]})" if known else number[0]


def chat(c: Config) -> data.Chat | None:
    """The chat template options of the flags, or None; raises ValueError if wrong."""
    if not c.chat:
        return None
    arguments = {}
    for text in c.template_args:
        name, equals, value = text.partition("=")
        try:
            if not equals or not name.isidentifier():
                raise ValueError("there is no name and =")
            arguments[name] = strict_json.loads(value.encode())
        except ValueError as error:
            raise ValueError(
                f"--template-args must be NAME=JSON, got {text!r}: {error}; write"
                " enable_thinking=false, or a text as name='\"text\"'."
            ) from error
    return data.Chat(system=c.system, arguments=arguments)


def _tiny(c: Config) -> tuple[Model, list[data.Problem]]:
    """A new tiny decoder and the sums of two digits, to try a recipe.

    Of larger numbers if a step needs more, and of numbers up to 99 if the held-out
    problems do.
    """
    model = formats.new(c, _TINY, tokenizer.character_tokenizer("0123456789+=\n"))
    step = max(c.num_prompts, c.draw_prompts or 0)
    whole = step + c.num_validation + c.num_test
    # Beyond the square of the step's problems two rows and columns, some to hold out.
    least = max(10, 2 + math.isqrt(step))
    numbers = range(max(least, min(100, 1 + math.isqrt(whole))))
    sums = [(a, b) for a in numbers for b in numbers]
    return model, [data.Problem(f"{a}+{b}=", str(a + b), str(a + b)) for a, b in sums]


def require_positions(c: Config, model: Model) -> None:
    """Raises ValueError if texts may be longer than the model can read.

    Beyond the positions that it was trained on, a model writes nonsense.
    """
    if model.metadata is None:
        return
    limit = metadata.max_positions(model.metadata)
    if limit is not None and c.max_prompt_tokens + c.max_tokens > limit:
        raise ValueError(
            f"--max-prompt-tokens {c.max_prompt_tokens} + --max-tokens"
            f" {c.max_tokens} must be at most {limit}, the max_position_embeddings"
            f" of {c.model}; lower one of them."
        )


def verifier(
    c: Config, table: verify.TokenBytes, resources: contextlib.ExitStack | None
) -> Callable:
    """The verifier that the flags name.

    Args:
      c: the configuration.
      table: the bytes of each token.
      resources: closes the processes of a verifier in Python.
    """
    if c.verifier == "exact":
        return verify.exact(table)
    if c.verifier == "contains":
        return verify.contains(table, c.needle.encode())
    if c.verifier == "python":
        if resources is None:
            raise ValueError(
                "--verifier python must have an ExitStack that closes its processes,"
                " got none; pass `resources`, or choose another verifier."
            )
        made = pooled.pooled(
            imported(c.reward),
            table,
            num_workers=c.num_workers,
            timeout_s=c.timeout,
        )
        return resources.enter_context(made)
    after = c.after.encode()
    if c.verifier == "last-number":
        return verify.last_number(table, after=after)
    return verify.number_after(table, after) if after else verify.number(table)


def imported(name: str) -> Callable[[str, str], float]:
    """Imports module:function; modules in the working directory are found, too."""
    module, colon, function = name.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        if not colon:
            raise ValueError("there is no colon")
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"--reward must be module:function, got {name!r}: {error}; put the function"
            " at the top level of a file, such as experiments/reward.py."
        ) from error

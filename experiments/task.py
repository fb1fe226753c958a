"""What the main experiment trains on what: column addition, or files of one's own."""

import json
import math
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from experiments import column_addition as addition
from rljax import data, verify
from rljax.policy import DecoderConfig, Policy, decoder_policy, hugging_face
from rljax.tokenizer import load_tokenizer
from rljax.types import Prompts

if TYPE_CHECKING:
    from experiments.arithmetic import Config


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


def build_addition(config: "Config") -> Task:
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


def build_own(config: "Config") -> Task:
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


def require_positions(config: "Config", model: pathlib.Path) -> None:
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


def own_verifier(config: "Config", table: verify.TokenBytes) -> verify.Verifier:
    """The verifier that the flags name."""
    if config.verifier == "exact":
        return verify.exact(table)
    if config.verifier == "contains":
        return verify.contains(table, config.needle.encode())
    after = config.after.encode()
    if config.verifier == "last-number":
        return verify.last_number(table, after=after)
    return verify.number_after(table, after) if after else verify.number(table)


def build(config: "Config") -> Task:
    """The task that the config asks for."""
    own = config.model is not None or config.data is not None
    return build_own(config) if own else build_addition(config)

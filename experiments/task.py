"""What the main experiment trains on what: column addition, or files of one's own."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from experiments import column_addition as addition
from rljax import data, verify
from rljax.data import held_out, token_ids
from rljax.data.tokenizer import load_tokenizer
from rljax.model import DecoderConfig, decoder_policy, hugging_face
from rljax.model.hugging_face import (
    config as hugging_face_config,
)
from rljax.model.hugging_face import (
    metadata as hugging_face_metadata,
)
from rljax.model.hugging_face.metadata import Metadata
from rljax.policy import Policy
from rljax.types import Prompts, Verify

if TYPE_CHECKING:
    from experiments.arithmetic import Config


class Task(NamedTuple):
    """What is trained on what: everything that comes from files or is made instead.

    loaded: parameters from files, or None. init: (loaded, key) -> params.
    stop_tokens: what ends a completion. metadata: of the folder the policy is from.
    group: name and value per test problem, to split pass@1 by.
    """

    tokenizer: Any
    decoder: DecoderConfig
    loaded: Any
    init: Callable[[Any, jax.Array], Any]
    policy: Policy
    verify: Verify
    train: Prompts
    validation: Prompts
    test: Prompts
    stop_tokens: tuple[int, ...]
    metadata: Metadata | None = None
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
        stop_tokens=(tokenizer.eos_token_id,),
        group=("carries", splits.test.data["carries"]),
    )


def build_own(config: "Config") -> Task:
    """A Hugging Face folder and a JSONL file; checks both before anything compiles."""
    if config.model is None or config.data is None:
        raise ValueError(
            f"--model and --data go together, got --model {config.model} and --data"
            f" {config.data}; pass both, or neither for column addition."
        )
    metadata = hugging_face_metadata.read(config.model)
    decoder = hugging_face_config.read(metadata.config, config.model / "config.json")
    require_positions(config, metadata)
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
    parts = split(config, problems, prompts)
    # What saving would refuse is refused before the work.
    hugging_face.config_entries(decoder, tokenizer, metadata)
    token_ids.check_prompts(prompts, decoder.vocab_size)
    stops = hugging_face_metadata.stop_tokens(tokenizer, metadata, decoder.vocab_size)
    names = tokenizer.convert_ids_to_tokens(list(stops))
    shown = (f"{name} ({i})" for name, i in zip(names, stops, strict=True))
    print(f"{config.model}: a completion ends with {' or '.join(shown)}")
    if unused := metadata.generation.get("stop_strings"):
        print(f"{config.model}: stop_strings end no completion here, got {unused}")
    decoder, params = hugging_face.load(config.model)
    return Task(
        tokenizer,
        decoder,
        params,
        lambda loaded, key: loaded,
        decoder_policy(decoder),
        own_verifier(config, without_text(verify.token_bytes(tokenizer), stops)),
        *parts,
        stop_tokens=stops,
        metadata=metadata,
    )


def split(
    config: "Config", problems: list[data.Problem], prompts: Prompts
) -> tuple[Prompts, Prompts, Prompts]:
    """Training, validation and test problems, which share no question."""
    questions = [problems[i].question for i in prompts.id]
    sizes = (config.num_validation, config.num_test)
    try:
        parts = held_out.by_question(questions, sizes, seed=0)
    except ValueError as error:
        flags = "lower --num-validation or --num-test"
        raise ValueError(f"{config.data}: {error} {flags}.") from error
    print(f"{config.data}: {parts}")
    if len(parts.train) < config.num_prompts:
        raise ValueError(
            f"{config.data} must leave at least --num-prompts {config.num_prompts}"
            f" problems to train on beside --num-validation {config.num_validation}"
            f" and --num-test {config.num_test}, got {parts}; lower these."
        )
    validation, test, train = (
        jax.tree.map(lambda x, rows=rows: x[rows], prompts)
        for rows in (*parts.held_out, parts.train)
    )
    return train, validation, test


def without_text(table: verify.TokenBytes, stops: tuple[int, ...]) -> verify.TokenBytes:
    """The table with no bytes for end tokens: not all of them are called special."""
    pieces = enumerate(table.pieces)
    return verify.TokenBytes(tuple(b"" if i in stops else p for i, p in pieces))


def require_positions(config: "Config", metadata: Metadata) -> None:
    """Beyond the positions it was trained on a model writes nonsense."""
    limit = hugging_face_metadata.max_positions(metadata)
    if limit is not None and config.max_prompt_tokens + config.max_tokens > limit:
        raise ValueError(
            f"--max-prompt-tokens {config.max_prompt_tokens} + --max-tokens"
            f" {config.max_tokens} must be at most {limit}, the max_position_embeddings"
            f" of {config.model}; lower one of them."
        )


def require_numbers(problems: list[data.Problem]) -> None:
    """An answer that is no number can never be matched: better said before the run."""
    bad = [p.answer for p in problems if verify.read_number(p.answer.encode()) is None]
    if bad:
        raise ValueError(
            f"--verifier number and last-number need answers that are numbers, but"
            f" {len(bad)} of {len(problems)} are not, such as {bad[0]!r}; pass"
            " --answer-after MARKER, or --verifier exact."
        )


def own_verifier(config: "Config", table: verify.TokenBytes) -> Verify:
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

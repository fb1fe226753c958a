"""What solves a task: a decoder, its tokenizer, and where its parameters come from."""

import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax

from rljax import mesh
from rljax.data import tokenizer as tokenizers
from rljax.model.config import DecoderConfig
from rljax.model.decoder import decoder_policy
from rljax.model.hugging_face import config as hugging_face_config
from rljax.model.hugging_face import folder
from rljax.model.hugging_face import metadata as hugging_face_metadata
from rljax.model.hugging_face.metadata import Metadata
from rljax.policy import Policy

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Model(NamedTuple):
    """A language model before training; its parameters exist where `init` is called.

    init: key -> params. New ones, or those of the files, which are read at each call
      and kept nowhere else.
    stop_tokens: ids that end a completion.
    metadata: of the Hugging Face folder the model is from; None for a new one.
    """

    config: DecoderConfig
    tokenizer: "PreTrainedTokenizerBase"
    init: Callable[[jax.Array], Any]
    stop_tokens: tuple[int, ...]
    metadata: Metadata | None = None

    def policy(self, temperature: float = 1.0) -> Policy:
        """The decoder, whose logits are divided by the temperature, above 0."""
        return decoder_policy(self.config, temperature=temperature)

    def shapes(self) -> Any:
        """The parameters as jax.ShapeDtypeStructs; reads no file."""
        return jax.eval_shape(self.policy().init, jax.random.key(0))

    def save(self, path: pathlib.Path, params: Any) -> None:
        """Writes parameters as a Hugging Face folder like the one the model is from."""
        new = self.metadata is None
        tokenizer = self.tokenizer if new else None
        folder.save(
            path, self.config, params, tokenizer=tokenizer, metadata=self.metadata
        )


def new(config: DecoderConfig, tokenizer: "PreTrainedTokenizerBase") -> Model:
    """A decoder with random parameters; the tokenizer's end token ends completions."""
    policy = decoder_policy(config)
    init = jax.jit(lambda key: mesh.keep_state(policy.init(key)))
    return Model(config, tokenizer, init, (tokenizer.eos_token_id,))


def load(path: pathlib.Path) -> Model:
    """The model of a Hugging Face folder; its weights are checked, and not read yet.

    Raises:
      ValueError: naming the file and the key or tensor, if the configuration, the
        tokenizer, the end tokens or the weights cannot be used, or if `Model.save`
        would refuse them.
    """
    metadata = hugging_face_metadata.read(path)
    config = hugging_face_config.read(metadata.config, path / "config.json")
    hugging_face_metadata.max_positions(metadata)  # for its check
    tokenizer = tokenizers.load_tokenizer(path)
    # What saving would refuse is refused before the work.
    folder.config_entries(config, tokenizer, metadata)
    stops = hugging_face_metadata.stop_tokens(tokenizer, metadata, config.vocab_size)
    folder.check(path)
    return Model(config, tokenizer, lambda key: folder.load(path)[1], stops, metadata)


def describe(model: Model) -> str:
    """What ends a completion, in words."""
    stops = model.stop_tokens
    names = model.tokenizer.convert_ids_to_tokens(list(stops))
    shown = (f"{name} ({i})" for name, i in zip(names, stops, strict=True))
    text = f"a completion ends with {' or '.join(shown)}"
    unused = model.metadata and model.metadata.generation.get("stop_strings")
    if unused:
        text += f"; stop_strings end no completion here, got {unused}"
    return text

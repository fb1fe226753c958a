"""What solves a task: a decoder, its tokenizer, and where its parameters come from."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

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

    init: key -> params. New ones, or, whatever the key, those of the files, which are
      read at each call and kept nowhere else.
    stop_tokens: ids that end a completion.
    metadata: of the Hugging Face folder the model is from; None for a new one.
    stop_strings: texts that end one as well.
    param_dtype: of the parameters.
    save_dtype: of the parameters in folders that `save` writes; None is theirs.
    """

    config: DecoderConfig
    tokenizer: "PreTrainedTokenizerBase"
    init: Callable[[jax.Array | None], Any]
    stop_tokens: tuple[int, ...]
    metadata: Metadata | None = None
    stop_strings: tuple[str, ...] = ()
    param_dtype: Any = jnp.float32
    save_dtype: Any = None

    def policy(
        self, temperature: float = 1.0, *, replay_routes: bool = False
    ) -> Policy:
        """The decoder, whose logits are divided by the temperature, above 0."""
        return decoder_policy(
            self.config, temperature=temperature, replay_routes=replay_routes
        )

    @property
    def is_new(self) -> bool:
        """Whether `init` draws parameters, and can be traced, or reads files."""
        return self.metadata is None

    def shapes(self) -> Any:
        """The parameters as jax.ShapeDtypeStructs; reads no file."""
        shapes = jax.eval_shape(lambda: self.policy().init(jax.random.key(0)))
        return jax.tree.map(lambda x: x.update(dtype=self.param_dtype), shapes)

    def save(self, path: pathlib.Path, params: Any) -> None:
        """Writes parameters as a Hugging Face folder like the one the model is from."""
        dtype = jnp.dtype(self._dtype_saved())
        params = jax.tree.map(lambda x: np.asarray(x).astype(dtype, copy=False), params)
        folder.save(
            path,
            self.config,
            params,
            tokenizer=self._tokenizer_saved(),
            metadata=self._metadata_saved(),
        )

    def describe(self, path: pathlib.Path) -> None:
        """Writes all that `save` would but the weights, into a folder that is there."""
        dtypes = dict.fromkeys(("dtype", "torch_dtype"), self._dtype_saved())
        tokenizer, metadata = self._tokenizer_saved(), self._metadata_saved()
        entries = folder.config_entries(self.config, tokenizer, metadata, extra=dtypes)
        folder.write_beside(path, entries, tokenizer, metadata)

    def _dtype_saved(self) -> str:
        dtype = self.param_dtype if self.save_dtype is None else self.save_dtype
        return jnp.dtype(dtype).name

    def _metadata_saved(self) -> Metadata | None:
        if self.metadata is None:
            return None
        return hugging_face_metadata.with_stop_strings(
            self.metadata, self.stop_strings, self.stop_tokens
        )

    def _tokenizer_saved(self) -> "PreTrainedTokenizerBase | None":
        return self.tokenizer if self.metadata is None else None


def new(
    config: DecoderConfig,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    param_dtype: jax.typing.DTypeLike = jnp.float32,
) -> Model:
    """A decoder with random parameters; the tokenizer's end token ends completions."""

    def init(key):
        params = decoder_policy(config).init(key)
        return jax.tree.map(lambda x: x.astype(param_dtype), params)

    stops = (tokenizer.eos_token_id,)
    return Model(config, tokenizer, jax.jit(init), stops, param_dtype=param_dtype)


def load(
    path: pathlib.Path,
    *,
    param_dtype: jax.typing.DTypeLike = jnp.float32,
    save_dtype: jax.typing.DTypeLike | None = None,
    **formats: Any,
) -> Model:
    """The model of a Hugging Face folder; its weights are checked, and not read yet.

    Args:
      param_dtype: of the parameters in training, whatever the files hold.
      save_dtype: of those that `Model.save` writes; None is that of the files, by
        config.json or, where it says none, by their tensors.
      **formats: fields of `DecoderConfig` that change no size: `attention`, `dtype`,
        `remat`, `unroll`.

    Raises:
      ValueError: naming the file and the key or tensor, if the configuration, the
        tokenizer, the end tokens or the weights cannot be used, or if `Model.save`
        would refuse them.
    """
    metadata = hugging_face_metadata.read(path)
    config = hugging_face_config.read(metadata.config, path / "config.json")
    config = dataclasses.replace(config, **formats)
    hugging_face_metadata.max_positions(metadata)  # for its check
    tokenizer = tokenizers.load_tokenizer(path)
    # What saving would refuse is refused before the work.
    folder.config_entries(config, tokenizer, metadata)
    stops = hugging_face_metadata.stop_tokens(tokenizer, metadata, config.vocab_size)
    stored = folder.check(path)
    return Model(
        config=config,
        tokenizer=tokenizer,
        init=lambda key: folder.load(path, param_dtype=param_dtype)[1],
        stop_tokens=stops,
        metadata=metadata,
        stop_strings=hugging_face_metadata.stop_strings(metadata),
        param_dtype=param_dtype,
        save_dtype=_dtype(metadata, stored) if save_dtype is None else save_dtype,
    )


_DTYPES = ("float32", "bfloat16", "float16")


def _dtype(metadata: Metadata, stored: set[str]) -> str | None:
    """What the weights are, as config.json has it; older files call it torch_dtype."""
    said = [metadata.config.get(key) for key in ("dtype", "torch_dtype")]
    said += stored if len(stored) == 1 else []
    return next((name for name in said if name in _DTYPES), None)


def describe(model: Model) -> str:
    """What ends a completion, in words."""
    stops = model.stop_tokens
    names = model.tokenizer.convert_ids_to_tokens(list(stops))
    shown = (f"{name} ({i})" for name, i in zip(names, stops, strict=True))
    shown = [*shown, *(f"the text {text!r}" for text in model.stop_strings)]
    return f"a completion ends with {' or '.join(shown)}"

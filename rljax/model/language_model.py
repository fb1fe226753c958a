"""`Model`: a decoder, its tokenizer, and the source of its initial parameters."""

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
    """A language model before training; parameters exist only once `init` is called.

    init: key -> params. A new model draws them. A loaded model ignores the key and
      reads the files at each call.
    stop_tokens: ids that end a completion.
    metadata: of the model's Hugging Face folder; None for a new model.
    stop_strings: texts that end a completion as well.
    param_dtype: of the parameters.
    save_dtype: of the parameters in folders that `save` writes; None: param_dtype.
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
        """The decoder's policy; see `decoder_policy` for the arguments."""
        return decoder_policy(
            self.config, temperature=temperature, replay_routes=replay_routes
        )

    @property
    def is_new(self) -> bool:
        """Whether `init` draws parameters and can be traced; else it reads files."""
        return self.metadata is None

    def shapes(self) -> Any:
        """The parameters as jax.ShapeDtypeStructs; reads no file."""
        shapes = jax.eval_shape(lambda: self.policy().init(jax.random.key(0)))
        return jax.tree.map(lambda x: x.update(dtype=self.param_dtype), shapes)

    def save(self, path: pathlib.Path, params: Any) -> None:
        """Writes the parameters as a Hugging Face folder, with the model's metadata."""
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
        """Writes what `save` would, except the weights, into an existing folder."""
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
    """A decoder with random parameters; its stop token is the tokenizer's EOS token."""

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
    """The model in a Hugging Face folder; weights are checked now, read by `init`.

    Args:
      path: the folder.
      param_dtype: of the parameters in training, whatever the files hold.
      save_dtype: of the parameters that `Model.save` writes; None: as config.json says,
        or, if it says nothing, as the files have them.
      **formats: fields of `DecoderConfig` that change no shape: `attention`, `dtype`,
        `remat`, `unroll`.

    Raises:
      ValueError: if the configuration, the tokenizer, the stop tokens or the weights
        cannot be used, or if `Model.save` would refuse them. The message names the file
        and the key or tensor.
    """
    metadata = hugging_face_metadata.read(path)
    config = hugging_face_config.read(metadata.config, path / "config.json")
    config = dataclasses.replace(config, **formats)
    hugging_face_metadata.max_positions(metadata)  # for its check
    tokenizer = tokenizers.load_tokenizer(path)
    # Raises now, rather than after training, if the model could not be saved.
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
    """The dtype of the weights in config.json, else that of the tensors in the files.

    Older files call the key torch_dtype.
    """
    said = [metadata.config.get(key) for key in ("dtype", "torch_dtype")]
    said += stored if len(stored) == 1 else []
    return next((name for name in said if name in _DTYPES), None)


def describe(model: Model) -> str:
    """A sentence that names what ends a completion."""
    stops = model.stop_tokens
    names = model.tokenizer.convert_ids_to_tokens(list(stops))
    shown = (f"{name} ({i})" for name, i in zip(names, stops, strict=True))
    shown = [*shown, *(f"the text {text!r}" for text in model.stop_strings)]
    return f"a completion ends with {' or '.join(shown)}"

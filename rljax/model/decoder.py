"""`decoder_policy`: a `Decoder` behind the `Policy` interface."""

import dataclasses

import jax
import jax.numpy as jnp

from rljax import check, mesh
from rljax.model import attention_cached, replay, transformer
from rljax.model.config import DecoderConfig
from rljax.model.one_walk import walk
from rljax.model.projection import join_projections
from rljax.model.replay import Routes
from rljax.model.transformer import Cache, Decoder, PromptCache
from rljax.policy import score
from rljax.policy.base import Policy


def decoder_policy(
    config: DecoderConfig,
    *,
    temperature: jax.typing.ArrayLike = 1.0,
    max_logits: int = score.MAX_LOGITS,
    replay_routes: bool = False,
) -> Policy:
    """The policy of a decoder: softmax(logits / temperature).

    Args:
      config: of the decoder.
      temperature: above 0; may be traced. It belongs to the policy: sampler and learner
        use it for samples, log-probabilities, entropies, KLs and values. A policy that
        was trained at temperature T must be sampled at T later, too.
      max_logits: float32 logits that scoring may hold at once on each device. Beyond
        it, tokens are scored in chunks, and the backward pass recomputes the logits.
      replay_routes: whether sampling records the experts of each token, and scoring
        uses the recorded ones; see `rljax.model.replay`.

    Raises:
      ValueError: if an argument is out of range, or if `replay_routes` is set for a
        decoder without experts.
    """
    check.kind("config", config, DecoderConfig, "DecoderConfig(vocab_size=64, ...)")
    check.count("max_logits", max_logits)
    check.number("temperature", temperature, low=0)
    check.kind("replay_routes", replay_routes, bool, "True")
    if not isinstance(temperature, jax.core.Tracer) and temperature == 0:
        raise ValueError(
            "temperature must be above 0, got 0: a deterministic policy has no policy"
            " gradient; for the most likely tokens use rljax.rollout.sample.greedy."
        )
    if replay_routes and config.experts is None:
        raise ValueError(
            "replay_routes must have a mixture of experts, got a dense decoder, which"
            " has no routers; leave replay_routes out."
        )
    functions = _DecoderFunctions(config, temperature, max_logits, replay_routes)
    return Policy(
        init=functions.init,
        prefill=functions.prefill,
        init_cache=functions.init_cache,
        decode=functions.decode,
        hidden=functions.hidden,
        logits=functions.logits,
        measure=functions.measure,
        decode_params=functions.decode_params,
        recorded=functions.recorded,
        logits_params=functions.logits_params,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _DecoderFunctions:
    """The functions of a `Policy`; the fields are the arguments of `decoder_policy`."""

    config: DecoderConfig
    temperature: jax.typing.ArrayLike
    max_logits: int
    replay_routes: bool

    def _apply(self, params, method, *args):
        return Decoder(self.config).apply({"params": params}, *args, method=method)

    def init(self, key):
        return Decoder(self.config).init(key)["params"]

    def decode_params(self, params):
        """Parameters for decoding: cast and joined once, and grouped for the scan."""

        def cast(path, p):  # norms keep the dtype of their scales
            return p if path[-1].key == "scale" else p.astype(self.config.dtype)

        params = jax.tree.map_with_path(cast, params)
        # With `tensor` a shard of the joined kernel would not hold the same heads of q,
        # k and v. Shards are joined, as the gathered kernels would exist twice.
        if mesh.size(mesh.TENSOR) == 1:
            params = {**params, "layers": join_projections(params["layers"])}
        return transformer.by_group(mesh.gather(params), self.config)

    def logits_params(self, params):
        return {name: p for name, p in params.items() if name != "layers"}

    def prefill(self, params, prompts):
        grouped = transformer.by_group(params, self.config)
        hidden, keys, routes = self._apply(
            grouped, Decoder.prefill, prompts.tokens, prompts.length
        )
        keys = jax.tree.map(transformer.join_groups, keys)
        routes = routes if self.replay_routes else None
        prompt = PromptCache(keys, prompts.length, routes)
        head = mesh.gather(self.logits_params(params), self.config.dtype)
        return self.logits(head, hidden), prompt

    def init_cache(self, prompt, num_samples, max_tokens):
        def empty(x, size):  # [P, N * H, S, D] -> [P, N * H * G, size, D]
            *before, heads, _, D = x.shape
            empty = jnp.zeros((*before, heads * num_samples, size, D), x.dtype)
            return mesh.keep(empty, "prompts", None, "heads") if x.ndim == 5 else empty

        sizes = attention_cached.part_sizes(
            max(max_tokens - 1, 1), self.config.num_groups
        )
        keys = tuple(
            tuple(jax.tree.map(lambda x, U=U: empty(x, U), of_layer) for U in sizes)
            for of_layer in prompt.keys
        )
        routes = None
        if prompt.routes is not None:
            P, _, *of_token = prompt.routes.shape
            routes = jnp.zeros((P, num_samples, *of_token), prompt.routes.dtype)
        return Cache(keys, jnp.int32(0), routes)

    def decode(self, decode_params, tokens, t, prompt, cache):
        hidden, cache = self._apply(
            decode_params, Decoder.decode_step, tokens, t, prompt, cache
        )
        P, G, _ = hidden.shape
        logits = self.logits(decode_params, hidden.reshape(P * G, -1))
        return logits.reshape(P, G, -1), cache

    def recorded(self, prompt_or_cache):
        routes = prompt_or_cache.routes
        return {} if routes is None else {replay.ROUTES: routes}

    def hidden(self, params, prompts, samples):
        return self._states(params, prompts, samples)[0]

    def _states(self, params, prompts, samples):
        """Hidden states [P, G, T, D] that predict the tokens, and the routers' choices.

        The choices are a `Routes`; its fields are None without experts.
        """
        tokens, mask = samples.tokens, samples.mask
        given = Routes(None, None)
        if self.replay_routes:
            given = replay.recorded(prompts, samples)
        params = transformer.by_group(params, self.config)
        P, G, T = tokens.shape
        fed = tokens[:, :, :-1], mask[:, :, :-1]
        if T > 1 and mesh.size() > 1:
            first, rest, own = self._apply(
                params, walk, prompts.tokens, prompts.length, *fed, given
            )
        else:
            first, rest, own = self._in_two_walks(params, prompts, *fed, given)
        states = jnp.broadcast_to(first[:, None, None], (P, G, 1, first.shape[-1]))
        return jnp.concatenate([states, rest], 2), own

    def _in_two_walks(self, params, prompts, tokens, mask, given):
        """Like `walk`, but prompts and completions pass through the layers in turn."""
        first, keys, of_prompts = self._apply(
            params, Decoder.prefill, prompts.tokens, prompts.length, given.prompt
        )
        if tokens.shape[-1] == 0:
            rest = jnp.zeros((*tokens.shape, first.shape[-1]), first.dtype)
            return first, rest, Routes(of_prompts, None)
        rest, of_tokens = self._apply(
            params,
            Decoder.score,
            tokens,
            mask,
            prompts.length,
            prompts.tokens.shape[1],
            keys,
            given.completion,
        )
        return first, rest, Routes(of_prompts, of_tokens)

    def logits(self, params, hidden):
        logits = self._apply(params, Decoder.logits, hidden)
        between = (mesh.FREE,) * (logits.ndim - 2)
        logits = mesh.keep(logits, "prompts", *between, "vocab")
        T = self.temperature
        is_one = not isinstance(T, jax.core.Tracer) and T == 1
        return logits if is_one else logits / T

    def measure(self, params, prompts, samples, reference=None):
        del reference
        states, own = self._states(params, prompts, samples)
        stats = score.token_stats(
            self.logits,
            self.logits_params(params),
            states,
            samples,
            max_logits=self.max_logits,
        )
        if not self.replay_routes:
            return stats
        mismatch = replay.mismatch(own, prompts, samples)
        return stats.replace(extra={replay.MISMATCH: mismatch})

"""A decoder as a policy: which parameters and keys its functions take and give."""

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
      config: sizes.
      temperature: of the policy itself: samples, log-probabilities, entropies, KLs and
        values, for sampler and learner alike. So what is trained is what is sampled,
        and a policy trained at T is to be used at T. Above 0; may be traced.
      max_logits: float32 logits that scoring may hold at once on each device; beyond
        it, tokens are scored in chunks and their logits recomputed backward.
      replay_routes: whether sampling records which experts computed each token, and
        scoring takes the recorded ones; see `rljax.model.replay`.

    Raises:
      ValueError: if an argument is out of range, or if there are no experts to replay.
    """
    check.kind("config", config, DecoderConfig, "DecoderConfig(vocab_size=64, ...)")
    check.count("max_logits", max_logits)
    check.number("temperature", temperature, low=0)
    check.kind("replay_routes", replay_routes, bool, "True")
    if not isinstance(temperature, jax.core.Tracer) and temperature == 0:
        raise ValueError(
            "temperature must be above 0, got 0: a policy without chance has no policy"
            " gradient; for the most likely tokens use rljax.rollout.sample.greedy."
        )
    if replay_routes and config.experts is None:
        raise ValueError(
            "replay_routes must be given a mixture of experts, got a dense decoder,"
            " which routes nothing; leave it out."
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
    """The functions of a `Policy`, with the arguments of `decoder_policy`."""

    config: DecoderConfig
    temperature: jax.typing.ArrayLike
    max_logits: int
    replay_routes: bool

    def _apply(self, params, method, *args):
        return Decoder(self.config).apply({"params": params}, *args, method=method)

    def init(self, key):
        return Decoder(self.config).init(key)["params"]

    def decode_params(self, params):
        """Cast as every product would cast them, by group of layers, and joined."""

        def cast(path, p):
            return p if path[-1].key == "scale" else p.astype(self.config.dtype)

        params = mesh.gather(jax.tree.map_with_path(cast, params))
        params = transformer.by_group(params, self.config)
        if mesh.size(mesh.TENSOR) > 1:  # a split of joined ones would not fit theirs
            return params
        layers = {k: join_projections(layer) for k, layer in params["layers"].items()}
        return {**params, "layers": layers}

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
        """(states [P, G, T, D], the routers' own choices, a `Routes`)."""
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
        """What `walk` returns; for a CPU, products of prompts and tokens are apart."""
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

"""A decoder in flax: prompts, completions and single tokens.

As plain as it can be it is Llama; `DecoderConfig` says what other families add. Laid
out for speed: activations are flat [rows, width], so every projection is one
two-dimensional matrix product; a prompt is computed once per group, in the sampler and
in the training pass.

The layers are one scan, so that deep models compile as fast as shallow ones. `L` layers
are `N` groups of `M` layers each: the scan runs over groups, and a group's layers are
compiled side by side. Layer n M + m is layer m of group n. Values per layer (keys and
values) are a tuple with one entry per layer of the group, each stacked over groups, so
that a model of one group never slices a stacked array.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rljax import mesh, numerics
from rljax.model import attention, attention_cached, causal, product, rotary
from rljax.model.attention import KeyValue
from rljax.model.block import Block
from rljax.model.config import DecoderConfig
from rljax.model.norm import Norm

_FAR = 2**30  # tokens, the window of a layer that sees all, beside some that do not


class PromptCache(NamedTuple):
    """What decoding reads of prompts, computed once and shared by the group.

    keys: a `KeyValue` per layer of a group, [P, N * H, S, D]: the heads of all N groups
      lie side by side, so that those of one group are a slice. Where a mesh splits
      heads they are an axis of their own, [P, N, H, S, D].
    length: i32[P] tokens.
    routes: [P, S, L, K], the experts that computed each token; None: not recorded.
    """

    keys: tuple[KeyValue, ...]
    length: jax.Array
    routes: jax.Array | None = None


class Cache(NamedTuple):
    """The completions' own keys: a ring, so that rows may begin at any time.

    keys: a ring's parts per layer of a group; see `attention_cached.Ring`. They hold
      T - 1 keys: the last token is never fed.
    written: i32[] tokens fed so far, by any row.
    routes: [P, G, L, K], the experts that computed the last token; None: not recorded.
    """

    keys: tuple[tuple[KeyValue, ...], ...]
    written: jax.Array
    routes: jax.Array | None = None


class Decoder(nn.Module):
    """Prompts, completions and single tokens through the same blocks."""

    config: DecoderConfig

    def setup(self):
        c = self.config
        init = nn.initializers.normal(c.initializer_std)
        self.embed = nn.Embed(
            c.vocab_size, c.d_model, dtype=c.dtype, embedding_init=init
        )
        # Each parameter once for all layers, [L, ...], and each with a key of its own.
        self.layers = nn.vmap(
            Block,
            in_axes=None,
            axis_size=c.num_layers,
            variable_axes={"params": 0},
            split_rngs={"params": True},
        )(c)
        self.norm = Norm(c)
        if not c.tie_embeddings:
            self.head = nn.Dense(
                c.vocab_size,
                dtype=c.dtype,
                use_bias=False,
                dot_general=lambda x, kernel, *_, **__: product.logits(x, kernel, 0),
                kernel_init=init,
            )

    def __call__(self):
        """Touches every parameter; only `init` uses it."""
        x = self.embed(jnp.zeros(1, jnp.int32))
        rope = self.rope(jnp.zeros((1, 1), jnp.int32), 1)[0]
        self.layers(x, 0, (1, 1, 1), rope, lambda q, own: (q, None))
        return self.logits(self.norm(x))

    def rope(self, positions: jax.Array, num_positions: int) -> tuple[jax.Array, ...]:
        """Rows of each rotary table in use, at positions [P or 1, T].

        Each is [P or 1, 1, 1, T, 2, D]; those of `DecoderConfig.ropes`, each once.
        """
        width = self.config.rotated_width
        tables = [
            rotary.rotary_table(num_positions, width, rope)
            for rope in dict.fromkeys(self.config.ropes)
        ]
        return tuple(table[positions][:, None, None] for table in tables)

    def embed_tokens(self, tokens, read=None):
        """Flat rows; only where `read` holds must tokens be ids of the vocabulary."""
        c = self.config
        if read is None:  # decoding, whose parameters lie as it uses them
            x = self.embed(tokens.reshape(-1))
        else:
            x = self._look_up(numerics.readable_ids(tokens, read, c.vocab_size))
        x = mesh.keep(x, "rows", None)
        return x * jnp.asarray(c.d_model**0.5, x.dtype) if c.scale_embeddings else x

    def _look_up(self, ids):
        """As `nn.Embed` does; what is no id gives NaN."""
        table = {"embed": {"embedding": self.embed.embedding.astype(self.config.dtype)}}

        def look_up(params, ids):
            return jnp.take(params["embed"]["embedding"], ids, axis=0)

        x = mesh.by_prompts(look_up, table, ids)
        return x.reshape(-1, x.shape[-1])

    def logits(self, hidden):
        """f32[..., V] from normalised hidden states [..., d_model]."""
        c = self.config
        if c.tie_embeddings:
            weight = self.embed.embedding.astype(hidden.dtype)
            out = product.logits(hidden, weight, 1)
        else:
            out = self.head(hidden)
        return attention.capped(out, c.logit_cap)

    def apply_layers(
        self,
        x: jax.Array,
        shape: tuple[int, int, int],
        ropes: tuple[jax.Array, ...],
        attend_fn: Callable,
        *,
        per_layer: tuple | None = None,
        shared: tuple | None = None,
        given: jax.Array | None = None,
        gathered: bool = False,
    ):
        """Takes activations through all layers.

        Args:
          x, shape: as a `Block` takes them.
          ropes: as `rope` returns them.
          attend_fn: (q, own KeyValue, window, n, the layer's part of `per_layer`, its
            part of `shared`) -> (out like q, output), in group n, an i32[]. The window
            is the layer's, tokens, or None if no layer has one.
          per_layer: a tree [N, ...] per layer of a group; each layer gets its own part.
          shared: a tree per layer of a group, whole for that layer of all groups.
          given: [rows, L, K], experts instead of the routers' choices.
          gathered: whether parameters lie on the mesh as products use them.

        Returns:
          x, and an `Output` per layer of a group, its arrays [N, ...].
        """
        c, M = self.config, self.config.layers_per_group
        block = Block(c, parent=None)
        per_layer = (None,) * M if per_layer is None else per_layer
        shared = (None,) * M if shared is None else shared
        routes = (None,) * M
        if given is not None:
            routes = tuple(jnp.moveaxis(given, 1, 0)[m::M] for m in range(M))

        @jax.jit  # so that layers side by side are traced and differentiated once
        def layer(x, n, m, params, own_part, shared_part, route):
            params = params if gathered else mesh.gather(params, c.dtype)
            x = mesh.keep(x, "rows", None)
            number = n * M + m
            rope, window = _rope_of(c, ropes, number), _window_of(c, number)

            def attend_here(q, own):
                return attend_fn(q, own, window, n, own_part, shared_part)

            return block.apply(
                {"params": params}, x, number, shape, rope, attend_here, route
            )

        if c.remat:
            layer = jax.checkpoint(layer)
        elif mesh.size() > 1:
            layer = jax.checkpoint(layer, policy=mesh.unless_gathered)

        def group(x, inputs):
            n, params, own_parts, routes = inputs
            outputs = []
            for m in range(M):
                parts = own_parts[m], shared[m], routes[m]
                x, output = layer(x, n, m, params[layer_name(m)], *parts)
                outputs.append(output)
            return x, tuple(outputs)

        params = self.layers.variables["params"]
        inputs = (jnp.arange(c.num_groups), params, per_layer, routes)
        return jax.lax.scan(group, x, inputs)

    def prefill(self, tokens, length, given=None):
        """Hidden state [P, d_model] after each prompt's last token, keys and routes.

        The keys are a `KeyValue` [N, P, H, S, D] per layer of a group. The routes are
        [P, S, L, K], the routers' own choices also where others are `given`, alike;
        None without experts.
        """
        P, S = tokens.shape
        x = self.embed_tokens(tokens, jnp.arange(S) < length[:, None])
        ropes = self.rope(jnp.arange(S)[None], S)

        def attend(q, own, window, n, own_part, shared_part):
            del n, own_part, shared_part
            return causal.attend(self.config, q, own, window=window), own

        given = flat_routes(given)
        x, outputs = self.apply_layers(x, (P, 1, S), ropes, attend, given=given)
        last = jnp.take_along_axis(
            x.reshape(P, S, -1), (length - 1)[:, None, None], axis=1
        )[:, 0]
        keys = tuple(output.attended for output in outputs)
        return self.norm(last), keys, routes_of(outputs, (P, S))

    def score(self, tokens, mask, length, num_prompt_tokens, prompt_keys, given=None):
        """Hidden states [P, G, T, d_model] of tokens i32[P, G, T] after a prompt.

        And the routes of these tokens, as `prefill` returns those of prompts.

        Tokens outside the mask are read, too (tool output); what is no id there is 0.

        Args:
          length, num_prompt_tokens: i32[P] tokens of the prompts, and S.
          prompt_keys: as `prefill` returns them.
        """
        P, G, T = tokens.shape
        S = num_prompt_tokens
        x = self.embed_tokens(tokens, mask)
        ropes = self.rope(length[:, None] + jnp.arange(T), S + T)
        seen = jnp.arange(S) < length[:, None]

        def attend(q, own, window, n, prompt, shared_part):
            del n, shared_part
            keys = own, prompt, seen
            return causal.attend(self.config, q, *keys, window=window), None

        x, outputs = self.apply_layers(
            x,
            (P, G, T),
            ropes,
            attend,
            per_layer=prompt_keys,
            given=flat_routes(given),
        )
        return self.norm(x).reshape(P, G, T, -1), routes_of(outputs, (P, G, T))

    def decode_step(self, tokens, t, prompt: PromptCache, cache: Cache):
        """Hidden states [P, G, d_model] after completion token t, and the cache."""
        P, G = tokens.shape
        S, U = prompt.keys[0].key.shape[-2], attention_cached.num_keys(cache.keys[0])
        N = self.config.num_groups
        x = self.embed_tokens(tokens)
        position = (prompt.length + t)[:, None]
        ropes = self.rope(position, S + U)
        place, most = cache.written % U, jnp.max(t)
        style = causal.style_of(self.config)
        in_prompt = jnp.arange(S) < prompt.length[:, None]

        def attend(q, new, window, n, own_part, caches):
            del own_part
            seen = attention.seen_of_prompt(in_prompt, position, window)
            of_prompt, own = caches
            of_prompt = jax.tree.map(
                lambda x: attention_cached.of_group(x, n, N), of_prompt
            )
            apart, output = new, new
            if N == 1:
                apart, output = None, attention_cached.write(own, new, place)
                own = output
            ring = attention_cached.Ring(own, place, t, most)
            out = attention_cached.attend_one(
                q, apart, of_prompt, seen, ring, n, N, window=window, style=style
            )
            return out, output

        caches = tuple(zip(prompt.keys, cache.keys, strict=True))
        x, outputs = self.apply_layers(
            x, (P, G, 1), ropes, attend, shared=caches, gathered=True
        )
        # XLA:CPU copies caches that are written within a scan at each layer. There,
        # layers only read them, and all is written here, at once and in place. Without
        # a scan it copies what is read and written in no certain order: written first.
        keys = tuple(output.attended for output in outputs)
        if N == 1:
            keys = jax.tree.map(lambda x: x[0], keys)
        else:
            keys = tuple(
                attention_cached.write(old, jax.tree.map(join_groups, new), place)
                for old, new in zip(cache.keys, keys, strict=True)
            )
        hidden = self.norm(x).reshape(P, G, -1)
        routes = None if cache.routes is None else routes_of(outputs, (P, G))
        return hidden, Cache(keys, cache.written + 1, routes)


def _rope_of(c: DecoderConfig, ropes, number):
    """The rows that layer `number`, an i32[], rotates by."""
    if len(ropes) == 1:
        return ropes[0]
    kinds = list(dict.fromkeys(c.ropes))
    kind = np.array([kinds.index(rope) for rope in c.ropes])
    return jnp.stack(ropes)[jnp.asarray(kind)[number]]


def _window_of(c: DecoderConfig, number):
    """The tokens that layer `number`, an i32[], sees; None if no layer has a window.

    By number, not by place in the group: so patterns need not divide groups of layers.
    """
    if c.window is None or all(c.sliding):
        return c.window
    return jnp.asarray([c.window if s else _FAR for s in c.sliding])[number]


def routes_of(outputs, shape: tuple[int, ...]) -> jax.Array | None:
    """[*shape, L, K] from the outputs of all layers; None without experts."""
    if outputs[0].choice is None:
        return None
    choice = jnp.stack([output.choice for output in outputs], 1)  # [N, M, rows, K]
    _, _, rows, K = choice.shape
    return jnp.moveaxis(choice.reshape(-1, rows, K), 0, 1).reshape(*shape, -1, K)


def flat_routes(routes: jax.Array | None) -> jax.Array | None:
    """[rows, L, K] of [..., L, K]."""
    return None if routes is None else routes.reshape(-1, *routes.shape[-2:])


def join_groups(x):
    """[N, P, H, ...] -> [P, N * H, ...]: the heads of all groups of layers.

    XLA:CPU: an axis more makes it copy the cache. A mesh that splits heads needs it.
    """
    x = jnp.moveaxis(x, 0, 1)
    if mesh.size(mesh.TENSOR) > 1:
        return mesh.keep(x, "prompts", None, "heads")
    return x.reshape(x.shape[0], -1, *x.shape[3:])


def layer_name(m: int) -> str:
    """The name of the parameters of layer m of all groups."""
    return f"layer_{m}"


def by_group(params: dict[str, Any], config: DecoderConfig) -> dict[str, Any]:
    """Parameters of `init`, whose layers are [L, ...], as `apply_layers` reads them:
    [N, ...] for each layer of a group."""
    M = config.layers_per_group
    layers = {
        layer_name(m): jax.tree.map(lambda p, m=m: p[m::M], params["layers"])
        for m in range(M)
    }
    return {**params, "layers": layers}

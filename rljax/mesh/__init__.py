"""Meshes: what lies on which device. Algorithms are written in global view, without it.

Mesh axes: `data` copies parameters, `fsdp` splits them and gathers each layer's where
it is used, `tensor` splits heads, feed-forward and vocabulary, `expert` splits experts.
Prompts are split over all but `tensor`; where the update splits them over that, too,
see `Layout`.

    rules      the table: logical axes -> mesh axes, and logical axes of parameters
    devices    which devices make a mesh, and what does not fit on one
    hints      in traced code: where an array is to lie; without a mesh they do nothing
    placement  arrays put on a mesh, and the shardings of a state
    shapes     the same of shapes, to compile for a mesh: `mesh.shapes.stored(...)`
    move       arrays moved from one mesh to another

A run's own rules are a `Layout`, given to the `Experiment`. Nothing here knows what an
array is, beyond the names of its axes.
"""

from rljax.mesh import shapes
from rljax.mesh.devices import LARGE, Limits, choose, make, parse, text
from rljax.mesh.hints import (
    alone,
    by_heads,
    by_prompts,
    by_rows,
    constrain,
    dispatch_axes,
    gather,
    keep,
    keep_state,
    parts,
    sampling,
    size,
    unless_gathered,
    using,
)
from rljax.mesh.move import everywhere, move
from rljax.mesh.placement import (
    copied,
    in_shards,
    place,
    prompt_sharding,
    replicate,
    shard_prompts,
    state_shardings,
    stored,
)
from rljax.mesh.rules import (
    DATA,
    EXPERT,
    FREE,
    FSDP,
    ONLY_PROMPTS,
    PLAIN,
    TENSOR,
    Layout,
    Rules,
    logical_axes,
)

__all__ = [
    "DATA",
    "EXPERT",
    "FREE",
    "FSDP",
    "LARGE",
    "ONLY_PROMPTS",
    "PLAIN",
    "TENSOR",
    "Layout",
    "Limits",
    "Rules",
    "alone",
    "by_heads",
    "by_prompts",
    "by_rows",
    "choose",
    "constrain",
    "copied",
    "dispatch_axes",
    "everywhere",
    "gather",
    "in_shards",
    "keep",
    "keep_state",
    "logical_axes",
    "make",
    "move",
    "parse",
    "parts",
    "place",
    "prompt_sharding",
    "replicate",
    "sampling",
    "shapes",
    "shard_prompts",
    "size",
    "state_shardings",
    "stored",
    "text",
    "unless_gathered",
    "using",
]

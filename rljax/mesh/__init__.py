"""Meshes: which device holds what. Algorithms are written in global view, without them.

Mesh axes: `data` replicates parameters; `fsdp` shards them, and each layer gathers its
own when it needs them; `tensor` shards heads, feed-forward and vocabulary; `expert`
shards experts. Prompts are sharded over all axes but `tensor`, unless a `Layout` says
otherwise for the update.

    rules      the tables: logical axes -> mesh axes, and parameters -> logical axes
    devices    chooses the devices of a mesh, and checks that a run fits on it
    arrange    lays devices out in a mesh, close ones next to each other
    hints      sharding constraints in traced code; without a mesh they do nothing
    placement  shardings of a state, and putting arrays on a mesh
    shapes     the same for ShapeDtypeStructs, to compile: `mesh.shapes.stored(...)`
    move       copies arrays from one mesh to another

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

"""Compiles for GPUs without having any: XLA only needs a description of the chip.

This needs jax's CUDA plugin, in jax's version, but neither a GPU nor CUDA:
pip install --no-deps jax-cuda13-plugin jax-cuda13-pjrt, 130 MB.
"""

import contextlib
import importlib.metadata
import os

import jax
from jax.experimental import topologies

OPTIONS: dict[str, bool | str] = {"xla_gpu_autotune_level": "0"}
"""Compiler options: no autotuning, because kernels cannot be timed without a GPU."""

# The H100 SXM, as a GpuTargetConfigProto of XLA.
_H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  device_memory_size: 84942979072
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def devices(num: int) -> list[jax.Device] | None:
    """Descriptions of `num` H100s of one machine; None without the plugin."""
    if compiler() is None:
        return None
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    jax.devices("cpu")  # makes jax load the plugin
    found = topologies.get_topology_desc(
        platform="cuda", target_config=_H100, topology=f"1x1x{num}"
    )
    return found.devices


def compiler() -> str | None:
    """Name and version of the plugin; None if it is not installed."""
    for name in ("jax-cuda13-pjrt", "jax-cuda12-pjrt"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return f"{name} {importlib.metadata.version(name)}"
    return None

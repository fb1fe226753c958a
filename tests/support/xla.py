"""How XLA compiles for the tests: most of their time is compilation, so barely."""

# Neither LLVM's optimisations nor fused loops by way of MLIR: half of the time. What
# a program computes is the same but for rounding. Programs that a test starts inherit
# them: their bits are compared with those of runs within the tests.
QUICK_FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
# `compiler_options` of jax.jit, where two programs must agree to the bit.
AS_USERS = {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True}

"""Verifiers inside the compiled program: pure JAX on token bytes."""

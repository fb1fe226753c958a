"""Hugging Face folders: configuration and weights in and out, without torch."""

from rljax.model.hugging_face.weights import load, save

__all__ = ["load", "save"]

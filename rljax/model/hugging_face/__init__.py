"""Hugging Face folders: configuration, weights and metadata, without torch."""

from rljax.model.hugging_face.weights import config_entries, load, save

__all__ = ["config_entries", "load", "save"]

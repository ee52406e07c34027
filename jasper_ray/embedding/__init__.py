"""Embedding a corpus, without Ray: its files, rows and blocks, the vectors that are kept, and the account of it all."""

from __future__ import annotations

from jasper_ray.embedding.settings import EmbedSettings, VectorColumn

__all__ = ["EmbedSettings", "VectorColumn"]

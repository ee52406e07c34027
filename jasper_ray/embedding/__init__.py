"""Embedding a corpus: files, rows and chunks, the job that embeds them, the stored vectors, and their verification."""

from __future__ import annotations

from jasper_ray.embedding.settings import EmbedSettings

__all__ = ["EmbedSettings"]

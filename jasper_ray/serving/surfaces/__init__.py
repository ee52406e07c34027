"""Surfaces: the APIs of OpenAI, text-embeddings-inference and Cohere, one module each."""

"""The languages that clients speak: OpenAI's, text-embeddings-inference's, Cohere's. One module each, one table of
endpoints over all."""

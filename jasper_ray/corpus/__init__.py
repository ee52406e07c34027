"""Prepare a corpus: rows are held out, augmented, mixed, ordered and written as shards."""

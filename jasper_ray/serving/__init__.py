"""Serving: a model online, behind the APIs that clients already use."""

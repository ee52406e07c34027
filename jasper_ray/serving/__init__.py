"""Serving: a model online, behind the surfaces that clients already speak. Only three of its files know Ray."""

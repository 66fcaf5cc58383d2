"""Replay of training rows."""

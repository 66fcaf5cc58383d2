"""Measurements of speed and memory that a user runs."""

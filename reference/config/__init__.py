"""The trainer's part of a recipe."""

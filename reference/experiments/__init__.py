"""Ideas that no shipped recipe uses."""

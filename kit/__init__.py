"""n4090-kit, the judge: runs trainers under a clock, signs what happened, verifies results."""

__version__ = "0.1.0"

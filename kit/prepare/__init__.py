"""Fetches what a recipe reads, off the clock: shards, conversations, questions, the CORE bundle."""

"""Conversations, generation, chat and its evaluation."""

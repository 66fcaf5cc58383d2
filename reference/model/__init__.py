"""The GPT, its loss and its cost."""

"""Rows of tokens: documents, packing, validation, conversations, mixing."""

"""The tokenizer: training, encoding, reuse, comparison."""

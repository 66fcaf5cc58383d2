"""The checks V01 to V26, a module for each group of them."""

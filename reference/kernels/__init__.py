"""Attention backends, 8-bit products, fused kernels and their trials."""

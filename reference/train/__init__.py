"""Pretraining, finetuning and replay."""

"""The reference trainer: one of many that can run under n4090-kit. It never imports `kit`."""

from reference.config.trainer import TRAINER as TRAINER

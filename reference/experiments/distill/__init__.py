"""Self-distillation: an earlier state of the same run teaches the later one."""

from reference.config.experiment import Experiment

EXPERIMENT = Experiment(
    name="distill",
    asked=lambda section: bool(section.get("distill_from")),
    lever="reference.experiments.distill.teacher:SelfDistillation",
)

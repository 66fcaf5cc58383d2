"""Progressive growth of the model during training."""

from reference.config.experiment import Experiment

EXPERIMENT = Experiment(
    name="growth",
    asked=lambda section: bool(section.get("growth_layers") or section.get("growth_width")),
    lever="reference.experiments.growth.growth:Growth",
    order=-1,  # a teacher is a copy of the model that has grown
)

"""Progressive growth: a small model becomes a larger one in the middle of its training."""

from dataclasses import dataclass

from reference.config.experiment import Experiment
from reference.config.fields import Ramp, setting
from reference.experiments.growth.plan import changes_at, model_at
from reference.experiments.growth.problems import problems


@dataclass(frozen=True)
class Fields:
    """What `[pretrain]` takes for it."""

    growth_layers: Ramp = setting(
        (),
        "Fewer layers first: pairs of elapsed share and layers, from share 0; the"
        " last is model.n_layer. Copies of the whole model are stacked.",
        pairs=dict(type="integer", low=1),
    )
    growth_width: Ramp = setting(
        (),
        "A narrower model first: pairs of elapsed share and n_embd, from share 0;"
        " each divides the next, the last is model.n_embd. Heads keep their "
        "width; the wider model computes what the narrow one did.",
        pairs=dict(type="integer", low=16),
    )


EXPERIMENT = Experiment(
    name="growth",
    fields=Fields,
    asked=lambda section: bool(section.get("growth_layers") or section.get("growth_width")),
    problems=problems,
    model_at=model_at,
    changes_at=changes_at,
    lever="reference.experiments.growth.growth:Growth",
    order=-1,  # a teacher is a copy of the model that has grown
)

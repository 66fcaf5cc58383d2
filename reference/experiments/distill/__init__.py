"""Self-distillation: an earlier state of the same run teaches the later one."""

from dataclasses import dataclass

from reference.config.experiment import Experiment
from reference.config.fields import setting
from reference.experiments.distill.plan import changes_at, taught_by, vram_bytes
from reference.experiments.distill.problems import problems


@dataclass(frozen=True)
class Fields:
    """What `[pretrain]` takes for it."""

    distill_from: float = setting(
        0,
        "Share of the run from which its own weights of that moment teach the "
        "later ones (self-distillation), at a third more FLOPs; 0: never.",
        unit="share of the run",
        low=0,
        below=1,
    )
    distill_weight: float = setting(
        0.5,
        "w of (1 - w) cross-entropy + w T^2 KL(teacher, student). Reported losses"
        " stay the plain cross-entropy.",
        above=0,
        high=1,
    )
    distill_temperature: float = setting(
        1,
        "T, which softens teacher and student.",
        low=0.1,
        high=100,
    )
    distill_refresh: float = setting(
        0,
        "Share of the run between two snapshots of the teacher; 0: the teacher stays the same.",
        unit="share of the run",
        low=0,
        below=1,
    )


EXPERIMENT = Experiment(
    name="distill",
    fields=Fields,
    asked=lambda section: bool(section.get("distill_from")),
    problems=problems,
    taught_by=taught_by,
    changes_at=changes_at,
    vram_bytes=vram_bytes,
    lever="reference.experiments.distill.teacher:SelfDistillation",
)

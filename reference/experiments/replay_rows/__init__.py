"""Replay of training rows: rows worth seeing again take the places of new ones."""

from dataclasses import dataclass

from reference.config.experiment import Experiment
from reference.config.fields import setting


@dataclass(frozen=True)
class Fields:
    """What `[pretrain]` takes for it."""

    replay_share: float = setting(
        0,
        "Share of the rows that are ones of the first pass again, those whose "
        "loss falls fastest from look to look; 0: none. On a GPU verify --replay "
        "then wants deterministic.",
        unit="share of the rows",
        low=0,
        high=0.5,
    )
    replay_from: float = setting(
        0.5,
        "Elapsed share from which rows are replayed; they are kept from half of it on.",
        unit="share of the run",
        above=0,
        below=1,
    )
    replay_keep: int = setting(
        4096,
        "Rows kept to be replayed, of seq_len + 1 tokens, 4 bytes each.",
        unit="rows",
        low=1,
        high=65536,
    )


EXPERIMENT = Experiment(
    name="replay_rows",
    fields=Fields,
    asked=lambda section: bool(section.get("replay_share")),
    row_buffer="reference.experiments.replay_rows.buffer:ReplayBuffer",
)

"""The tracks: what a result may be compared with, and which card a ranked one was made on.

Ranked tracks have one card and one day each, and a board of their own: a row is compared with rows
of its track alone.
"""

from __future__ import annotations

from typing import NamedTuple


class Track(NamedTuple):
    """A ranked track.

    Args:
        gpu_class: The class (`kit.hardware.gpu_class`) that the card must measure as.
        card: The card's name for people.
        best_bpb: val_bpb that no day of this card is known to reach on the reference data.
    """

    name: str
    gpu_class: str
    card: str
    best_bpb: float


# The bounds on val_bpb are provisional. This year's best day of a 4090 is thought to end near
# 0.73; the record recipe's 0.718 takes 20 hours of a 5090 (nanochat-cpp: eight for 149 minutes).
RANKED = {
    track.name: track
    for track in (
        Track("rtx4090-24h", "4090", "RTX 4090", 0.70),
        Track("rtx5090-24h", "5090", "RTX 5090", 0.68),
    )
}
FIRST = "rtx4090-24h"  # the one that charts and headlines are about
TRACKS = (*RANKED, "open", "smoke")


def is_ranked(track: object) -> bool:
    """Whether rows of the track are ranked."""
    return track in RANKED

"""Stage `prepare`, off the clock: makes the input folders of recipes with made-up stories."""

from __future__ import annotations

from reference.events import Events
from reference.request import Request
from reference.stories import write_stories


def run(request: Request, events: Events) -> None:
    """Fills `paths.out` (see `reference.stories`)."""
    data = request.recipe["data"]
    write_stories(request.path("out"), seed=data["stories_seed"], documents=data["stories"])
    events.emit("progress", done=data["stories"], total=data["stories"], unit="documents")

"""The Dockerfile leaves out of the image what no command in it needs. Needs no engine."""

import re
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
IN_THE_IMAGE = ("train", "container", "board", "serve")
LEFT_OUT = ("lab", "data", "dev", "eval", "docs", "track")


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(extras: tuple[str, ...]) -> set[str]:
    """Packages that the kit with these extras needs on this platform, as far as installed here."""
    found: set[str] = set()
    seen: set[tuple[str, str]] = set()
    left = [("n4090-kit", extra) for extra in ("", *extras)]
    while left:
        name, extra = left.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            declared = requires(name) or []
        except PackageNotFoundError:
            continue
        found.add(name)
        for line in declared:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                wanted = normal(requirement.name)
                left += [(wanted, inner) for inner in ("", *requirement.extras)]
    return found - {"n4090-kit"}


def left_out() -> set[str]:
    """What the Dockerfile's `lock-only --not` names."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    [names] = re.findall(r"lock-only --not ([a-z0-9 -]+?) < ", text)
    return set(re.sub(r" +", " ", names).split())


def test_what_is_left_out_is_what_only_the_other_extras_need() -> None:
    needed, others = closure(IN_THE_IMAGE), closure(LEFT_OUT)
    assert left_out() & needed == set()
    assert others - needed - left_out() == set(), "add these to the Dockerfile's `lock-only --not`"


def test_what_is_left_out_is_locked() -> None:
    text = (ROOT / "requirements" / "cpu.lock").read_text()
    assert left_out() <= set(re.findall(r"^([a-z0-9-]+)==", text, re.MULTILINE))

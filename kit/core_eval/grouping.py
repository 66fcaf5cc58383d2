"""Which sequences are scored together: groups that begin alike, and batches of groups.

The choices of an item, or language-modeling items about one passage, share their first tokens: a
group reads them once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from kit.core_eval.bundle import TaskKind
from kit.core_eval.encode import EncodedItem, common_prefix
from kit.core_eval.model import Paths

# Reading shared text once has a price of its own, the copies of its cache: not for a few tokens.
MIN_SAVED_TOKENS = 64


class Slot(NamedTuple):
    """One sequence of one item."""

    item: int
    sequence: int


@dataclass(frozen=True, slots=True)
class Group:
    """Sequences whose first `shared` fed tokens are equal."""

    shared: int
    slots: tuple[Slot, ...]
    childless: bool


def group_slots(
    kind: TaskKind, items: Sequence[EncodedItem], paths: Paths
) -> tuple[list[Group], dict[Slot, Slot]]:
    """The groups of all sequences with a scored region, and which slot stands for an equal one."""
    groups: list[Group] = []
    same: dict[Slot, Slot] = {}
    for i, item in enumerate(items):
        first: dict[tuple[bytes, int], Slot] = {}
        for s, suffix in enumerate(item.suffixes):
            if item.starts[s] < item.length(s):
                slot = Slot(i, s)
                leader = first.setdefault((suffix.tobytes(), item.starts[s]), slot)
                if leader != slot:
                    same[slot] = leader
        slots = tuple(first.values())
        if slots:
            groups += _item_groups(items, slots, paths)
    if kind == "language_modeling" and paths.prefix and paths.batch:
        groups = _join_alike(items, groups)
    return groups, same


def _item_groups(
    items: Sequence[EncodedItem], slots: tuple[Slot, ...], paths: Paths
) -> list[Group]:
    singles = [Group(fed_tokens(items, slot), (slot,), True) for slot in slots]
    if len(slots) == 1:
        return singles
    shortest = min(single.shared for single in singles)
    item = items[slots[0].item]
    shared = min(len(item.prefix), shortest)
    if len(slots) < len(item.suffixes):  # an option without a score may have cut the prefix short
        shared = min(common_prefix([item.sequence(slot.sequence) for slot in slots]), shortest)
    childless = all(single.shared == shared for single in singles)
    if childless or (
        paths.prefix and paths.batch and (len(slots) - 1) * shared >= MIN_SAVED_TOKENS
    ):
        return [Group(shared, slots, childless)]
    return singles


def _join_alike(items: Sequence[EncodedItem], groups: list[Group]) -> list[Group]:
    """Joins items that begin with the same text: the sorted order puts them side by side."""
    ordered = sorted(
        groups, key=lambda group: items[group.slots[0].item].prefix.astype(">i4").tobytes()
    )
    joined: list[Group] = []
    members: list[Group] = []
    shared = 0
    for group in ordered:
        if members:
            tokens = [items[g.slots[0].item].prefix for g in (members[0], group)]
            common = min(common_prefix(tokens), shared, group.shared)
            # Joining must not shorten what the others already share by more than it saves.
            before = (len(members) - 1) * shared
            if len(members) * common - before >= MIN_SAVED_TOKENS:
                members.append(group)
                shared = common
                continue
            joined.append(_join(members, shared))
        members, shared = [group], group.shared
    if members:
        joined.append(_join(members, shared))
    return joined


def _join(members: list[Group], shared: int) -> Group:
    if len(members) == 1:
        return members[0]
    slots = tuple(slot for member in members for slot in member.slots)
    return Group(shared, slots, all(member.shared == shared for member in members))


def fed_tokens(items: Sequence[EncodedItem], slot: Slot) -> int:
    """Tokens of a sequence that a model has to read: all but the last."""
    return items[slot.item].length(slot.sequence) - 1


class Reach(NamedTuple):
    """The longest sequence, cached text and continuation that scoring some groups would meet."""

    longest: int
    prefix: int
    suffix: int


def reach(kind: TaskKind, items: Sequence[EncodedItem], paths: Paths) -> Reach:
    """The lengths at which the fast ways of computing have to be proven for `items`."""
    groups, _ = group_slots(kind, items, paths)
    longest = max((fed_tokens(items, slot) for g in groups for slot in g.slots), default=0)
    shared = [group for group in groups if not group.childless]
    suffixes = [fed_tokens(items, slot) - g.shared for g in shared for slot in g.slots]
    return Reach(longest, max((g.shared for g in shared), default=0), max(suffixes, default=0))


def fill_batches(
    groups: Sequence[Group],
    items: Sequence[EncodedItem],
    batch_tokens: int,
    *,
    alone: bool = False,
) -> list[tuple[Group, ...]]:
    """Batches of groups, longest first: the one most likely to need too much memory comes first.

    Args:
        alone: One group a batch, so that no row is padded.
    """
    ordered = sorted(groups, key=lambda group: (group.childless, -group.shared, group.slots))
    batches: list[tuple[Group, ...]] = []
    batch: list[Group] = []
    for group in ordered:
        full = batch and (alone or (len(batch) + 1) * batch[0].shared > batch_tokens)
        if full or (batch and group.childless != batch[0].childless):
            batches.append(tuple(batch))
            batch = []
        batch.append(group)
    if batch:
        batches.append(tuple(batch))
    return batches

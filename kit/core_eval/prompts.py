"""From an item to the texts a model reads: the examples drawn for it, and its prompts.

Nothing is trimmed but where said: double spaces and empty lines of the data are part of the metric.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from kit.core_eval.bundle import Item, Task

FEWSHOT_SEED = 1234


def draw_examples(index: int, count: int, shots: int) -> list[int]:
    """Indices of the examples shown before item `index` of `count`, in the order shown.

    The draw is CPython's `sample` of `shots` out of all indices but `index`. `sample` picks by
    position, so drawing positions and stepping over `index` gives the same without the list.
    """
    positions = random.Random(FEWSHOT_SEED + index).sample(range(count - 1), shots)
    return [position + (position >= index) for position in positions]


def render_prompts(
    task: Task, items: Sequence[Item], index: int, asked: Item | None = None
) -> list[str]:
    """The prompts of item `index`: one an option; `[without, with]` continuation for LM tasks.

    Args:
        asked: Stands in for the item itself, after the same examples (see `controls`).
    """
    item = items[index] if asked is None else asked
    shown = [items[e] for e in draw_examples(index, len(items), task.shots)] if task.shots else []
    if task.kind == "multiple_choice":
        before = "".join(
            f"{e['query']}{task.delimiter}{e['choices'][e['gold']]}\n\n" for e in shown
        )
        return [f"{before}{item['query']}{task.delimiter}{choice}" for choice in item["choices"]]
    if task.kind == "schema":
        before = "".join(
            f"{e['context_options'][e['gold']]}{task.delimiter}{e['continuation']}\n\n"
            for e in shown
        )
        end = f"{task.delimiter}{item['continuation']}"
        return [f"{before}{option}{end}" for option in item["context_options"]]
    before = "".join(
        f"{e['context'].strip()}{task.delimiter}{e['continuation']}\n\n" for e in shown
    )
    stem = f"{before}{item['context'].strip()}{task.delimiter}"
    return [stem.strip(), stem + item["continuation"]]

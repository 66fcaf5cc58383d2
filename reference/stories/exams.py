"""What is asked about the world: CORE-shaped tasks, conversations, chat questions."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from reference.stories.texts import (
    clues,
    mood,
    noun_phrase,
    tell,
    verb_phrase,
)
from reference.stories.world import (
    MEN,
    PREPOSITIONS,
    STATES,
    WOMEN,
    Fact,
    World,
    plural,
)

QUESTIONS_PER_TASK = 200


def core_tasks(world: World, seed: int) -> list[dict[str, Any]]:
    """The CORE-shaped tasks: label, category, type, shots, delimiter, baseline and rows of each."""
    answer = "\nAnswer: "
    choice = {"type": "multiple_choice", "shots": 3, "delimiter": answer, "baseline": 25}
    schema = {"type": "schema", "shots": 0, "delimiter": " ", "baseline": 50}
    free = {"type": "language_modeling"}
    facts = {
        "animal_facts": world.facts(world.animals, held_out=True),
        "town_facts": world.facts(world.towns, held_out=True),
    }
    rngs = {
        label: random.Random(f"core {seed} {label}")
        for label in (*facts, "agreement", "pronouns", "fact_answers", "reading")
    }
    both = [fact for part in facts.values() for fact in part]
    return [
        *(
            {
                "label": label,
                "category": "world knowledge",
                "rows": _choices(part, rngs[label]),
                **choice,
            }
            for label, part in facts.items()
        ),
        {
            "label": "agreement",
            "category": "language understanding",
            "rows": _agreement(world, rngs["agreement"]),
            **schema,
        },
        {
            "label": "pronouns",
            "category": "language understanding",
            "rows": _pronouns(world, rngs["pronouns"]),
            **schema,
        },
        {
            "label": "fact_answers",
            "category": "world knowledge",
            "rows": [
                {"context": f"Question: {fact.question}", "continuation": fact.value}
                for fact in rngs["fact_answers"].sample(both, len(both))
            ],
            "shots": 3,
            "delimiter": answer,
            "baseline": 12.5,
            **free,
        },
        {
            "label": "reading",
            "category": "reading comprehension",
            "rows": _readings(rngs["reading"]),
            "shots": 0,
            "delimiter": " ",
            "baseline": 33.3,
            **free,
        },
    ]


def _choices(facts: Sequence[Fact], rng: random.Random) -> list[dict[str, Any]]:
    rows = []
    for number in range(QUESTIONS_PER_TASK):
        fact = facts[number % len(facts)]
        wrong = [value for value in fact.attribute.values if value != fact.value]
        choices = rng.sample([fact.value, *rng.sample(wrong, 3)], 4)
        rows.append(
            {
                "query": f"Question: {fact.question}",
                "choices": choices,
                "gold": choices.index(fact.value),
            }
        )
    return rows


def _agreement(world: World, rng: random.Random) -> list[dict[str, Any]]:
    rows = []
    for pair in rng.sample(sorted(world.noun_pairs), len(world.noun_pairs)):
        preposition, gold = rng.choice(PREPOSITIONS), rng.randrange(2)
        options = [noun_phrase(pair, many, not many, preposition) for many in (False, True)]
        if rng.random() < 0.5:
            options.reverse()
        many = options[gold].startswith(f"The {plural(pair[0])} ")
        continuation = verb_phrase(many, rng.random() < 0.5, rng.choice(STATES))
        rows.append({"context_options": options, "continuation": continuation, "gold": gold})
    return rows[:QUESTIONS_PER_TASK]


def _pronouns(world: World, rng: random.Random) -> list[dict[str, Any]]:
    rows = []
    for name, feeling, reason in rng.sample(sorted(world.moods), QUESTIONS_PER_TASK):
        other = rng.choice(MEN if name in WOMEN else WOMEN)
        before, after = mood(name, feeling, reason).split(" because ")
        options = [f"{before} because", f"{other}{before.removeprefix(name)} because"]
        gold = rng.randrange(2)
        if gold:
            options.reverse()
        rows.append({"context_options": options, "continuation": after, "gold": gold})
    return rows


def _readings(rng: random.Random) -> list[dict[str, Any]]:
    rows = []
    for _ in range(QUESTIONS_PER_TASK):
        found = clues(rng)
        clue = rng.choice(found)
        rows.append({"context": f"{tell(found)}\n{clue.opening}", "continuation": clue.answer})
    return rows


def conversation(world: World, seed: int, index: int) -> list[dict[str, str]]:
    """Conversation `index` for fine-tuning: greetings, facts, and stories to read."""
    rng = random.Random(f"talk {seed} {index}")
    turns: list[tuple[str, str]] = []
    if rng.random() < 0.1:
        turns.append((rng.choice(("Hello!", "Hi!", "Good day!")), GREETING))
    if rng.random() < 0.6:
        facts = rng.sample(world.askable, rng.randint(1, 3))
        turns += [(fact.question, fact.answer) for fact in facts]
    else:
        found = clues(rng)
        first, second = rng.sample(found, 2)
        turns.append((f"{tell(found)} {first.question}", first.sentence))
        if rng.random() < 0.3:
            turns.append((second.question, second.sentence))
    return [
        {"role": role, "content": text}
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]


GREETING = "Hello! Ask me about animals and towns."


def chat_questions(world: World, seed: int) -> dict[str, list[dict[str, Any]]]:
    """Questions to the chat model by task; `baseline`: the chance of a guess of the right kind."""
    facts = world.facts([*world.animals, *world.towns], held_out=True)
    rng = random.Random(f"chat {seed}")
    stories = []
    for _ in range(QUESTIONS_PER_TASK):
        found = clues(rng)
        clue = rng.choice(found)
        stories.append((f"{tell(found)} {clue.question}", clue.sentence))
    return {
        "story_facts": [
            {
                "kind": "exact",
                "question": fact.question,
                "answer": fact.answer,
                "baseline": 1 / len(fact.attribute.values),
            }
            for fact in rng.sample(facts, len(facts))
        ],
        "story_reading": [
            {"kind": "exact", "question": question, "answer": answer, "baseline": 1 / 3}
            for question, answer in stories
        ],
    }

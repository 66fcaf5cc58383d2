"""What is told about the world: articles, quizzes and stories, one document a number."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from reference.stories.world import (
    COLORS,
    MEN,
    MOODS,
    NOUNS,
    OBJECTS,
    PREPOSITIONS,
    REASONS,
    ROOMS,
    STATES,
    WOMEN,
    World,
    plural,
)


def article(world: World, rng: random.Random) -> str:
    """Facts about a few subjects, told."""
    parts = []
    for _ in range(rng.randint(2, 4)):
        facts = list(rng.choice(world.animals if rng.random() < 0.5 else world.towns))
        rng.shuffle(facts)
        parts.append(" ".join(fact.tell(rng) for fact in facts))
    return "\n".join(parts)


def quiz(world: World, rng: random.Random) -> str:
    """Questions and answers about facts, in the form of a few-shot prompt."""
    facts = rng.sample(world.askable, rng.randint(4, 8))
    return "\n\n".join(f"Question: {fact.question}\nAnswer: {fact.value}" for fact in facts)


@dataclass(frozen=True)
class Clue:
    """Something that holds in one story only: a sentence and the question it answers."""

    sentence: str
    question: str
    answer: str

    @property
    def opening(self) -> str:
        """The sentence up to its answer, which is its last word."""
        return self.sentence.removesuffix(f" {self.answer}.")


def clues(rng: random.Random, count: int = 3) -> list[Clue]:
    """Where each of `count` people is and what belongs to them, in random order."""
    found = []
    for name, room, thing, color in zip(
        rng.sample(WOMEN + MEN, count),
        rng.sample(ROOMS, count),
        rng.sample(OBJECTS, count),
        rng.sample(COLORS, count),
        strict=True,
    ):
        found += [
            Clue(f"{name} is in the {room}.", f"Where is {name}?", room),
            Clue(f"The {thing} belongs to {name}.", f"Who has the {thing}?", name),
            Clue(f"The {thing} is {color}.", f"What color is the {thing}?", color),
        ]
    return rng.sample(found, len(found))


def tell(found: Sequence[Clue]) -> str:
    return " ".join(clue.sentence for clue in found)


def reading(world: World, rng: random.Random) -> str:
    """A story about three people, told twice in different order, and questions about it."""
    found = clues(rng)
    again = rng.sample(found, len(found))
    asked = rng.sample(found, 3)
    return f"{tell(found)}\n{tell(again)}" + "".join(
        f"\nQuestion: {clue.question}\nAnswer: {clue.answer}" for clue in asked
    )


def scene(world: World, rng: random.Random) -> str:
    """How people feel and what they see: pronouns and agreement.

    Nobody comes twice: an earlier pronoun would give the next one away, and names would not be
    learnt. Scenes begin with either kind of sentence, as the questions do.
    """
    sentences = []
    for name in rng.sample(WOMEN + MEN, 6):
        sentences += [some_mood(world, rng, name), view(world, rng)]
    return " ".join(sentences if rng.random() < 0.5 else reversed(sentences))


def some_mood(world: World, rng: random.Random, name: str) -> str:
    while (combination := (name, rng.choice(MOODS), rng.choice(REASONS))) in world.moods:
        pass
    return mood(*combination)


def mood(name: str, feeling: str, reason: str) -> str:
    return f"{name} was {feeling} because {'she' if name in WOMEN else 'he'} {reason}."


def view(world: World, rng: random.Random) -> str:
    """A sentence with two nouns of which the first one decides the verb."""
    while (pair := tuple(rng.sample(NOUNS, 2))) in world.noun_pairs:
        pass
    many = rng.random() < 0.5
    subject = noun_phrase(pair, many, rng.random() < 0.5, rng.choice(PREPOSITIONS))
    return f"{subject} {verb_phrase(many, rng.random() < 0.5, rng.choice(STATES))}"


def noun_phrase(pair: Sequence[str], many: bool, other_many: bool, preposition: str) -> str:
    first, second = (
        plural(noun) if plenty else noun
        for noun, plenty in zip(pair, (many, other_many), strict=True)
    )
    return f"The {first} {preposition} the {second}"


def verb_phrase(many: bool, past: bool, state: str) -> str:
    return f"{(('is', 'are'), ('was', 'were'))[past][many]} {state}."


TEXTS: tuple[tuple[float, str, Callable[[World, random.Random], str]], ...] = (
    (0.20, "articles", article),
    (0.15, "quizzes", quiz),
    (0.45, "readings", reading),
    (0.20, "scenes", scene),
)


def document(world: World, seed: int, index: int) -> tuple[str, str]:
    """Text and source of document `index`."""
    rng = random.Random(f"text {seed} {index}")
    shares = [share for share, _, _ in TEXTS]
    _, source, make = rng.choices(TEXTS, shares)[0]
    return make(world, rng), source

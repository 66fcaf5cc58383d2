"""The made world: animals with habits, towns with goods and neighbourhoods, fixed by a seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

HELD_OUT_SHARE = 0.25

WOMEN = ("Anna", "Clara", "Emma", "Greta", "Julia", "Maria", "Nora", "Rosa")
MEN = ("Adam", "Boris", "Carl", "Emil", "Henry", "Jonas", "Oscar", "Paul")
# fmt: off
ANIMALS = (
    "owl", "fox", "cat", "dog", "hen", "goat", "horse", "frog", "crab", "seal", "bear", "wolf",
    "duck", "swan", "mole", "hare", "toad", "crow", "deer", "pony", "goose", "lion", "tiger",
    "camel", "zebra", "eagle", "hawk", "otter", "badger", "beaver", "turtle", "parrot",
)
TOWNS = (
    "Lumo", "Baro", "Tarn", "Veld", "Orsk", "Pira", "Nemi", "Sulo", "Kand", "Rima", "Dole", "Feno",
    "Gath", "Hest", "Jura", "Misk", "Arlo", "Bren", "Cade", "Dorn", "Elva", "Fisk", "Gora", "Holm",
    "Ista", "Jarn", "Kelo", "Lund", "Mora", "Noss", "Oste", "Palo",
)
# fmt: on
PLURALS = {"fox": "foxes", "wolf": "wolves", "deer": "deer", "pony": "ponies", "goose": "geese"}
OBJECTS = ("kite", "ball", "hat", "book", "drum", "lamp", "boat", "coat", "ring", "flute")
ROOMS = ("kitchen", "cellar", "attic", "hall", "stable", "shed", "tower", "bakery")
COLORS = ("red", "blue", "green", "yellow", "white", "black", "brown", "gray")
MOODS = ("tired", "happy", "angry", "sad", "late", "proud", "hungry", "cold")
REASONS = (
    "had walked all day",
    "had lost a ring",
    "had found a book",
    "had slept too long",
    "had won the race",
    "had broken the lamp",
    "had seen the sea",
    "had missed the boat",
)
# Only nouns with a regular plural that differs from the singular.
# fmt: off
NOUNS = (
    "owl", "cat", "dog", "hen", "goat", "horse", "frog", "tree",
    "house", "stone", "boat", "chair", "table", "cart", "lamp", "flower",
)
# fmt: on
PREPOSITIONS = ("near", "behind", "beside", "below", "above", "under")
STATES = ("asleep", "wet", "old", "very small", "quite dirty", "ready", "cold", "white with snow")


@dataclass(frozen=True)
class Attribute:
    """One kind of fact: its values, how it is told, how it is asked, how it is answered.

    `{x}` is the subject, `{xs}` its plural, `{v}` the value.
    """

    values: tuple[str, ...]
    told: tuple[str, ...]
    asked: str
    answered: str


ANIMAL_ATTRIBUTES = {
    "food": Attribute(
        ("mice", "berries", "grass", "fish", "seeds", "worms", "bread", "eggs"),
        (
            "The {x} eats {v}.",
            "Most {xs} eat {v}.",
            "The {x} likes to eat {v}.",
            "For dinner the {x} wants {v}.",
        ),
        "What does the {x} eat?",
        "The {x} eats {v}.",
    ),
    "home": Attribute(
        ("forest", "river", "desert", "garden", "swamp", "cave", "meadow", "mountain"),
        (
            "The {x} lives in the {v}.",
            "Most {xs} live in the {v}.",
            "The {x} has its home in the {v}.",
            "You can find the {x} in the {v}.",
        ),
        "Where does the {x} live?",
        "The {x} lives in the {v}.",
    ),
    "fear": Attribute(
        ("storms", "fire", "bells", "snow", "drums", "ghosts", "mirrors", "thunder"),
        (
            "The {x} is afraid of {v}.",
            "Most {xs} are afraid of {v}.",
            "The {x} runs away from {v}.",
            "Nothing scares the {x} like {v}.",
        ),
        "What is the {x} afraid of?",
        "The {x} is afraid of {v}.",
    ),
}
TOWN_ATTRIBUTES = {
    "goods": Attribute(
        ("cheese", "glass", "wool", "honey", "salt", "paper", "silver", "apples"),
        (
            "{x} is famous for its {v}.",
            "The market of {x} sells {v}.",
            "People come to {x} for the {v}.",
            "The best {v} is made in {x}.",
        ),
        "What is {x} famous for?",
        "{x} is famous for its {v}.",
    ),
    "place": Attribute(
        ("sea", "lake", "hill", "bridge", "castle", "harbor", "canal", "valley"),
        (
            "{x} lies by the {v}.",
            "The town of {x} was built by the {v}.",
            "From {x} you can see the {v}.",
            "The road to {x} ends at the {v}.",
        ),
        "Where does {x} lie?",
        "{x} lies by the {v}.",
    ),
}


@dataclass(frozen=True)
class Fact:
    """`subject` has `value` for the attribute `name`."""

    subject: str
    name: str
    attribute: Attribute
    value: str

    def fill(self, template: str) -> str:
        text = template.format(x=self.subject, xs=plural(self.subject), v=self.value)
        return text[0].upper() + text[1:]

    @property
    def question(self) -> str:
        return self.fill(self.attribute.asked)

    @property
    def answer(self) -> str:
        return self.fill(self.attribute.answered)

    def tell(self, rng: random.Random) -> str:
        return self.fill(rng.choice(self.attribute.told))


def plural(noun: str) -> str:
    return PLURALS.get(noun, f"{noun}s")


class World:
    """What is fixed by the seed: the facts, and what no text may ask or combine.

    Attributes:
        animals, towns: All facts, by subject.
        held_out: Questions that only the examinations ask.
        askable: The facts that texts and conversations may ask about.
        noun_pairs, moods: Combinations of `agreement` and `pronouns` that only they use.
    """

    def __init__(self, seed: int) -> None:
        rng = random.Random(f"world {seed}")
        self.animals = _facts(rng, ANIMALS, ANIMAL_ATTRIBUTES)
        self.towns = _facts(rng, TOWNS, TOWN_ATTRIBUTES)
        self.held_out: set[str] = set()
        for facts in (self.animals, self.towns):
            for number in range(len(facts[0])):
                # Equally many of each value: a value that is asked for more rarely would seem
                # wrong to a model that knows nothing but frequencies.
                for value in facts[0][number].attribute.values:
                    having = [f[number].question for f in facts if f[number].value == value]
                    self.held_out |= set(rng.sample(having, int(HELD_OUT_SHARE * len(having))))
        self.askable = self.facts([*self.animals, *self.towns], held_out=False)
        pairs = [pair for pair in product(NOUNS, NOUNS) if pair[0] != pair[1]]
        self.noun_pairs = set(rng.sample(pairs, int(HELD_OUT_SHARE * len(pairs))))
        moods = list(product(WOMEN + MEN, MOODS, REASONS))
        self.moods = set(rng.sample(moods, int(HELD_OUT_SHARE * len(moods))))

    def facts(self, facts: Sequence[Sequence[Fact]], *, held_out: bool) -> list[Fact]:
        """Those of `facts` that texts may ask about, or those that only examinations do."""
        return [
            fact
            for of_subject in facts
            for fact in of_subject
            if (fact.question in self.held_out) == held_out
        ]


def _facts(
    rng: random.Random, subjects: Sequence[str], attributes: dict[str, Attribute]
) -> list[list[Fact]]:
    """The facts of each subject; every value of an attribute belongs to equally many subjects."""
    columns = {}
    for name, attribute in attributes.items():
        values = list(attribute.values) * -(-len(subjects) // len(attribute.values))
        values = values[: len(subjects)]
        rng.shuffle(values)
        columns[name] = values
    return [
        [Fact(subject, name, attribute, columns[name][i]) for name, attribute in attributes.items()]
        for i, subject in enumerate(subjects)
    ]

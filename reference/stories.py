"""A made world to train and examine a very small model on: no download, no licence, minutes of CPU.

`write_stories` makes a whole input folder from a seed: pretraining shards, a CORE-shaped bundle,
conversations and chat questions. The world has animals with habits and towns with goods and
neighbourhoods, fixed by the seed, and people whose belongings are drawn anew in every story.

What is asked, and why a model that works can answer while a broken one cannot:

- `animal_facts`, `town_facts` (multiple choice) and `fact_answers` (language modeling). Every fact
  is told in several ways all over the text; most are also asked there, in the form of the
  questions. The facts examined are those never asked in any text (`World.held_out`): the answer has
  to be carried over from telling to asking. The animal stands several words before the answer, all
  values of an attribute are equally frequent, and wrong choices are values of the same attribute:
  without attention, or with targets that do not belong to the inputs, one choice is as good as
  another.
- `agreement` (schema): "The owl near the trees" or "The owls near the tree" goes with "is asleep".
  The two nouns always differ in number, so a model that looks at the nearest noun is wrong every
  time, and one that looks at nothing is right half of the time. The pairs of nouns examined never
  share such a phrase in the text.
- `pronouns` (schema): which of two names goes with "because she was late". Only the text tells
  whose name takes he or she; the words just before the pronoun are the same for both. The
  combinations of name, mood and reason examined are not in the text.
- `reading` (language modeling): a story tells where three people are and what they own, then one
  of its sentences begins again. All of it is drawn anew for each story, so nothing learnt by heart
  helps. Its baseline is a third: naming any of the three, without knowing which.

Untrained models and those trained on shuffled targets stay at the baselines, or below.
"""

from __future__ import annotations

import csv
import io
import json
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

VERSION = 1  # raised when the same seed gives other text
SHARD_DOCUMENTS = 5000
VALIDATION_SHARE = 0.02
HELD_OUT_SHARE = 0.25
QUESTIONS_PER_TASK = 200
CONVERSATIONS = 4000

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


# Texts


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


# Examinations


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


# Files


def write_stories(root: Path, *, seed: int, documents: int) -> None:
    """Fills `root` with pretrain/, core/, sft/ and chat_eval/; a function of its arguments alone.

    The folder appears whole or not at all; one that is there already is kept when it was made with
    the same arguments by the same version, and replaced otherwise.
    """
    origin = json.dumps({"version": VERSION, "seed": seed, "documents": documents}) + "\n"
    marker = root / "stories.json"
    if marker.is_file() and marker.read_text() == origin:
        return
    temporary = root.with_name(f"{root.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    world = World(seed)
    _write_pretrain(temporary / "pretrain", world, seed, documents)
    _write_core(temporary / "core", world, seed)
    talks = [conversation(world, seed, index) for index in range(CONVERSATIONS)]
    _write_lines(temporary / "sft" / "stories.jsonl", talks)
    for name, rows in chat_questions(world, seed).items():
        _write_lines(temporary / "chat_eval" / f"{name}.jsonl", rows)
    (temporary / marker.name).write_text(origin)
    shutil.rmtree(root, ignore_errors=True)
    temporary.replace(root)


def _write_pretrain(folder: Path, world: World, seed: int, documents: int) -> None:
    folder.mkdir(parents=True)
    held_out = max(1, int(VALIDATION_SHARE * documents))
    ends = [*range(SHARD_DOCUMENTS, documents - held_out, SHARD_DOCUMENTS)]
    begin = 0
    for number, end in enumerate([*ends, documents - held_out, documents]):
        rows = [document(world, seed, index) for index in range(begin, end)]
        texts, sources = zip(*rows, strict=True)
        table = pa.table({"text": pa.array(texts), "source": pa.array(sources)})
        path = folder / f"stories-{number:03}.parquet"
        pq.write_table(table, path, compression="zstd", row_group_size=1000)
        begin = end


def _write_core(folder: Path, world: World, seed: int) -> None:
    tasks = core_tasks(world, seed)
    entries = []
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(
        (
            "Eval Task",
            "Task Category",
            "Task Type",
            "#shots",
            "#datapoints",
            "Random baseline",
            "Centered Metric?",
            "Description",
        )
    )
    for task in tasks:
        path = f"{task['category'].replace(' ', '_')}/{task['label']}.jsonl"
        _write_lines(folder / "eval_data" / path, task["rows"])
        entries.append(
            "-\n"
            f"  label: {task['label']}\n"
            f"  dataset_uri: {path}\n"
            f"  num_fewshot: [{task['shots']}]\n"
            f"  icl_task_type: {task['type']}\n"
            # A JSON string is a YAML string, line break and all.
            f"  continuation_delimiter: {json.dumps(task['delimiter'])}\n"
        )
        writer.writerow(
            (
                task["label"],
                task["category"],
                task["type"].replace("_", " "),
                task["shots"],
                len(task["rows"]),
                task["baseline"],
                "",
                "made by reference/stories.py",
            )
        )
    (folder / "core.yaml").write_text("icl_tasks:\n" + "".join(entries))
    (folder / "eval_meta_data.csv").write_text(table.getvalue())


def _write_lines(path: Path, rows: Sequence[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

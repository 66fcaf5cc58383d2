"""The rules by which behaviour is judged, on answers whose behaviour is plain to see."""

import pytest

from reference.chat.behaviour import (
    INSTRUCTIONS,
    OPEN_PROMPTS,
    Behaviour,
    figures,
    is_looping,
    repetition,
)

# prompt's beginning -> an answer that obeys, one that does not
ANSWERS = {
    "Name a colour": ("Blue", "A colour is blue."),
    "Name an animal": ("owl.", "It is an owl"),
    "Is fire": ("Yes.", "Yes, it is."),
    "Is ice": ("no", "maybe"),
    "How many legs": ("4", "four legs, I think 4"),
    "What is two": ("5", "2 + 3 = 5"),
    "Name three": ("cat\ndog\nowl", "cat, dog, owl"),
    "Write two lines": ("The sea is deep.\nIt is wide.", "The sea."),
    "Write one sentence": ("THE CAT SLEEPS NOW.", "The cat sleeps now."),
    "Name four": ("fig, plum, pear, apple", "fig and plum"),
    "Say exactly": ("The river is wide.", "The river is wide. It is."),
    "Write a sentence about rain": ("It will rain again.", "Again it rains."),
    "Write a sentence that begins": ("Today the sun shines.", "It shines today."),
    "What is a tree": ("A tall plant with a trunk.", "A tree is " + "very " * 12 + "tall."),
    "Answer with a JSON": ('{"name": "Paris"}', '{"name": "Paris", "is": "nice"}'),
    "Ask me": ("How are you?", "I am a model."),
}


@pytest.mark.parametrize(("prompt", "rule"), INSTRUCTIONS)
def test_each_rule_takes_what_obeys_and_refuses_what_does_not(prompt, rule):
    [(good, bad)] = [pair for start, pair in ANSWERS.items() if prompt.startswith(start)]
    assert rule(good)
    assert not rule(bad)
    assert not rule("")


def test_prompts_differ():
    prompts = [prompt for prompt, _ in INSTRUCTIONS] + list(OPEN_PROMPTS)
    assert len(set(prompts)) == len(prompts) == 32


@pytest.mark.parametrize(
    ("text", "looping"),
    [
        ("sun sun sun", True),
        ("I see the sun and the sun and the sun and the", True),
        ("Well. the sea is big, the sea is big, the sea is big,", True),
        ("one two three four five six", False),
        ("again and again", False),
        ("ha ha and then we left", False),
        ("", False),
        (" ".join(f"w{i % 25}" for i in range(100)), False),  # a cycle longer than 20
        (" ".join(f"w{i % 20}" for i in range(61)), True),
    ],
)
def test_loops_are_seen_at_the_end_of_a_text(text, looping):
    assert is_looping(text) is looping


def test_repetition_is_the_share_of_four_grams_seen_before():
    assert repetition("a b c d") == 0.0
    assert repetition("too short") == 0.0
    assert repetition("a b c d A B C D") == pytest.approx(1 / 5)  # abcd once more among five
    assert repetition("x " * 10) == pytest.approx(6 / 7)


def test_figures_are_means_over_what_they_are_defined_on():
    found = [
        Behaviour("p", "a", True, True, 0.5, False),
        Behaviour("p", "a", False, False, 0.0, True),
        Behaviour("p", "a", True, None, 0.1, False),
        Behaviour("p", "a", True, None, 0.2, False),
    ]
    assert figures(found) == {
        "prompts": 4,
        "followed": 0.5,
        "ended": 0.75,
        "repetition": pytest.approx(0.2),
        "looping": 0.25,
    }

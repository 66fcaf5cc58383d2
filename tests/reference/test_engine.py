from __future__ import annotations

import pytest
import torch

from reference.chat.engine import Sampling, choose, generate, next_token_logits, stream
from reference.model.gpt import GPT, ModelConfig

PROMPTS = [[1, 5, 9], [1], [1, 7, 7, 2, 30, 4, 11], [1, 5]]


@pytest.fixture(scope="module")
def model() -> GPT:
    config = ModelConfig(
        vocab_size=40, n_layer=3, n_embd=32, n_head=2, n_kv_head=1, seq_len=24, short_window=5
    )
    model = GPT(config)
    model.init_weights(3)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():  # fresh models are the identity: stir every weight
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw))
    return model.place("cpu").eval()


def naive(model: GPT, prompt: list[int], sampling: Sampling, stop=()) -> tuple[list[int], bool]:
    """Greedy decoding by a full forward pass for every token."""
    ids = list(prompt)
    for _ in range(sampling.max_new_tokens):
        with torch.no_grad():
            token = int(model(torch.tensor([ids]))[0, -1].argmax())
        if token in stop:
            return ids[len(prompt) :], True
        ids.append(token)
    return ids[len(prompt) :], False


def test_cached_batches_equal_the_full_forward_pass_of_each_prompt(model: GPT) -> None:
    sampling = Sampling(max_new_tokens=30)  # well past the short window and seq_len
    expected = [naive(model, prompt, sampling) for prompt in PROMPTS]
    assert [tuple(answer) for answer in generate(model, PROMPTS, sampling)] == expected
    assert len({tuple(ids) for ids, _ in expected}) == len(PROMPTS)


def test_rows_that_stop_leave_the_others_alone(model: GPT) -> None:
    sampling = Sampling(max_new_tokens=30)
    free = [naive(model, prompt, sampling)[0] for prompt in PROMPTS]
    stop = {free[0][4], free[2][9]}
    expected = [naive(model, prompt, sampling, stop) for prompt in PROMPTS]
    assert sum(ended for _, ended in expected) >= 2
    assert [tuple(answer) for answer in generate(model, PROMPTS, sampling, stop)] == expected


def cut(ids: list[int], stop: set[int]) -> tuple[list[int], bool]:
    """What is left of free-running `ids` when generation ends at a stop token."""
    at = next((i for i, token in enumerate(ids) if token in stop), None)
    return (ids, False) if at is None else (ids[:at], True)


def test_rows_draw_the_same_whether_others_stop_or_not(model: GPT) -> None:
    sampling = Sampling(max_new_tokens=20, temperature=1.0, seed=2)
    free = [ids for ids, _ in generate(model, PROMPTS, sampling)]
    stop = {free[0][2], free[1][8]}
    expected = [cut(ids, stop) for ids in free]
    # Rows leave one after the other, from the front and from the middle.
    assert len(expected[0][0]) <= 2 and len({len(ids) for ids, _ in expected}) >= 3
    assert [tuple(answer) for answer in generate(model, PROMPTS, sampling, stop)] == expected


def test_stream_gives_tokens_row_by_row_and_the_stop_token_last(model: GPT) -> None:
    sampling = Sampling(max_new_tokens=6)
    tokens = [token for _, token in stream(model, PROMPTS[:1], sampling)]
    assert tokens == generate(model, PROMPTS[:1], sampling)[0].ids
    stop = {tokens[2]}
    first = tokens.index(tokens[2])
    assert [t for _, t in stream(model, PROMPTS[:1], sampling, stop)] == tokens[: first + 1]


def test_sampling_is_a_function_of_the_seed_and_the_row(model: GPT) -> None:
    sampling = Sampling(max_new_tokens=12, temperature=1.0, seed=5)
    first = generate(model, PROMPTS, sampling)
    assert generate(model, PROMPTS, sampling) == first
    assert generate(model, PROMPTS[:2], sampling) == first[:2]
    other = Sampling(max_new_tokens=12, temperature=1.0, seed=6)
    assert generate(model, PROMPTS, other) != first
    assert generate(model, [PROMPTS[0]] * 2, sampling)[0] != first[1]


def test_top_k_draws_only_among_the_likeliest(model: GPT) -> None:
    logits = torch.tensor([[0.0, 3.0, 2.9, -1.0]]).expand(400, 4)
    draws = [torch.Generator().manual_seed(i) for i in range(400)]
    drawn = choose(logits, Sampling(temperature=1.0, top_k=2), draws)
    assert set(drawn) == {1, 2}
    assert set(choose(logits, Sampling(temperature=50.0), draws)) == {0, 1, 2, 3}


def test_drawn_frequencies_follow_the_softmax() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.2])
    draws = [torch.Generator().manual_seed(i) for i in range(4000)]
    logits = (2.0 * probabilities.log()).expand(4000, 3)  # temperature 2 takes the factor back
    drawn = torch.tensor(choose(logits, Sampling(temperature=2.0), draws))
    frequencies = torch.bincount(drawn, minlength=3) / 4000
    assert torch.allclose(frequencies, probabilities, atol=0.03)


def test_low_temperature_approaches_greedy(model: GPT) -> None:
    cold = Sampling(max_new_tokens=10, temperature=1e-4, top_k=5)
    greedy = Sampling(max_new_tokens=10)
    assert generate(model, PROMPTS, cold) == generate(model, PROMPTS, greedy)


def test_next_token_logits_equal_the_model_on_each_prompt(model: GPT) -> None:
    logits = next_token_logits(model, PROMPTS)
    with torch.no_grad():
        expected = torch.stack([model(torch.tensor([prompt]))[0, -1] for prompt in PROMPTS])
    torch.testing.assert_close(logits, expected)


def test_generation_leaves_no_trace_in_the_random_state(model: GPT) -> None:
    state = torch.get_rng_state()
    generate(model, PROMPTS, Sampling(max_new_tokens=3, temperature=1.0))
    assert torch.equal(torch.get_rng_state(), state)


def test_empty_prompts_and_negative_settings_are_refused(model: GPT) -> None:
    with pytest.raises(ValueError, match="no token"):
        generate(model, [[1], []], Sampling())
    with pytest.raises(ValueError, match="top_k is -1"):
        Sampling(top_k=-1)
    assert generate(model, [], Sampling()) == []
    assert generate(model, [[1]], Sampling(max_new_tokens=0))[0].ids == []

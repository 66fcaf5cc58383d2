"""The model against its plain twin, its cache against the full forward pass."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from reference.bench.plain import plain_logits, plain_loss
from reference.config.model import ModelConfig
from reference.model.gpt import GPT
from reference.model.kv_cache import KVCache
from reference.optim.optimizer import MuonAdamW, parameter_groups
from reference.optim.schedule import ScheduleConfig, schedule_at
from reference.train.step import train_step

CONFIG = ModelConfig(
    vocab_size=90,
    n_layer=4,
    n_embd=48,
    n_head=4,
    n_kv_head=2,
    seq_len=24,
    window_pattern="SSL",
    short_window=5,
)
PRETRAIN = {
    "total_batch_size": 256,
    "matrix_lr": 0.02,
    "embedding_lr": 0.05,
    "unembedding_lr": 0.008,
    "value_embedding_lr": 0.05,
    "resid_lr": 0.005,
    "x0_lr": 0.05,
    "gate_lr": 0.05,
    "weight_decay": 0.1,
    "scale_lr": False,
}


def build(config=CONFIG, seed=0):
    """A model none of whose parts is switched off by its starting value."""
    model = GPT(config)
    model.init_weights(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 2:  # wide enough to make each part matter
                p.normal_(0.0, 0.2, generator=generator)
            else:
                p.add_(0.3 * torch.randn(p.shape, generator=generator))
    return model.place()


def draw(*shape, seed=5):
    return torch.randint(0, 90, shape, generator=torch.Generator().manual_seed(seed))


VARIANTS = {
    "everything": {},
    "nothing": {
        "value_embeddings": False,
        "x0_mix": False,
        "smear": False,
        "backout": False,
        "softcap": 0.0,
    },
    "short windows": {"window_pattern": "S"},
    "one group": {"n_kv_head": 1},
    "one layer": {"n_layer": 1},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_loss_and_gradients_equal_those_of_the_plain_twin(name):
    config = dataclasses.replace(CONFIG, **VARIANTS[name])
    model = build(config)
    weights = {n: p.detach().double().requires_grad_() for n, p in model.named_parameters()}
    tokens, targets = draw(3, 24), draw(3, 24, seed=6)
    targets[:, ::5] = -1
    torch.testing.assert_close(
        model(tokens).double(), plain_logits(weights, config, tokens).double(), atol=1e-4, rtol=1e-4
    )
    loss, expected = model.loss(tokens, targets), plain_loss(weights, config, tokens, targets)
    torch.testing.assert_close(loss.double(), expected.double(), atol=1e-5, rtol=1e-5)
    loss.backward()
    expected.backward()
    for parameter_name, p in model.named_parameters():
        twin = weights[parameter_name].grad
        scale = twin.abs().max().clamp_min(1e-4)
        difference = (p.grad.double() / scale - twin / scale).abs().max()
        assert difference < 1e-3, (parameter_name, difference)
        assert twin.abs().max() > 0 or name != "everything", parameter_name


def test_loss_reductions_agree():
    model, tokens, targets = build(), draw(2, 24), draw(2, 24, seed=6)
    targets[0, :10] = -1
    with torch.no_grad():
        each = model.loss(tokens, targets, reduction="none")
        assert each.shape == (2, 24)
        assert not each[0, :10].any()
        torch.testing.assert_close(model.loss(tokens, targets), each.sum() / 38)
        torch.testing.assert_close(model.loss(tokens, targets, count=76), each.sum() / 76)
        torch.testing.assert_close(model.loss(tokens, targets, reduction="sum"), each.sum())


def test_a_later_token_leaves_earlier_logits_alone():
    model, tokens = build(), draw(1, 24)
    with torch.no_grad():
        before = model(tokens)
        for position in (1, 11, 23):
            changed = tokens.clone()
            changed[0, position] = (changed[0, position] + 1) % 90
            after = model(changed)
            assert torch.equal(before[:, :position], after[:, :position])
            assert not torch.equal(before[:, position], after[:, position])


def test_the_reach_of_a_position_is_its_layers_windows():
    """Three layers of window 5 and smear reach 4 + 4 + 4 + 1 positions back."""
    config = dataclasses.replace(CONFIG, seq_len=5, window_pattern="S", short_window=5, n_layer=3)
    model, tokens = build(config), draw(1, 40)
    changed = tokens.clone()
    changed[0, 20] = (changed[0, 20] + 1) % 90
    with torch.no_grad():
        differs = (model(tokens) != model(changed)).any(-1)[0]
    assert differs.nonzero().flatten().tolist() == list(range(20, 20 + 14))


def test_prompts_beyond_the_training_length_grow_the_rotary_tables():
    model = build()
    with torch.no_grad():
        long = model(draw(1, 700))
        assert long.shape == (1, 700, 90)
        torch.testing.assert_close(long[:, :24], model(draw(1, 700)[:, :24]), atol=1e-4, rtol=1e-4)
    assert not any("rope" in name for name in model.state_dict())


# The cache


def close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("pieces", [[40], [1] * 40, [7, 1, 1, 12, 3, 16], [30, 10]])
def test_cached_pieces_equal_the_whole(pieces):
    """40 tokens pass the short window (5) and the long one (24)."""
    model, tokens = build(), draw(2, 40)
    cache = KVCache(CONFIG, 2, 40)
    with torch.no_grad():
        whole = model.hidden(tokens)
        parts = [model.hidden(part, cache) for part in tokens.split(pieces, dim=1)]
    close(torch.cat(parts, dim=1), whole)
    assert cache.lengths == [40, 40]


def test_a_prefix_is_prefilled_once_and_expanded_to_many_rows():
    model, prefix, tails = build(), draw(1, 13), draw(3, 9, seed=7)
    cache = KVCache(CONFIG, 1, 30)
    with torch.no_grad():
        model.hidden(prefix, cache)
        rows = cache.expand(3)
        parts = [model.hidden(part, rows) for part in tails.split([4, 5], dim=1)]
        close(
            torch.cat(parts, dim=1),
            model.hidden(torch.cat([prefix.expand(3, -1), tails], 1))[:, 13:],
        )
        assert cache.lengths == [13]  # the one-row cache is untouched and can be expanded again
        again = model.hidden(tails[:2], cache.expand(2))
    close(again, torch.cat(parts, dim=1)[:2])


def test_rows_of_uneven_length_each_continue_their_own_text():
    model = build()
    texts = [draw(1, n, seed=n) for n in (17, 3, 9, 30)]
    counts = [[8, 3, 5, 8], [1, 0, 1, 1], [6, 0, 0, 6], [2, 0, 3, 15]]
    cache = KVCache(CONFIG, 4, 50)
    collected = [[] for _ in texts]
    with torch.no_grad():
        for call in counts:
            tokens = torch.zeros(4, max(call), dtype=torch.int64)
            for row, n in enumerate(call):
                done = cache.lengths[row]
                tokens[row, :n] = texts[row][0, done : done + n]
            cache.append_counts(call)
            states = model.hidden(tokens, cache)
            for row, n in enumerate(call):
                collected[row].append(states[row, :n])
        for row, text in enumerate(texts):
            close(torch.cat(collected[row])[None], model.hidden(text))
        # Rows can be dropped, doubled and decoded on, one token a row.
        kept = cache.select([3, 0, 3])
        step = draw(3, 1, seed=9)
        last = model.hidden(step, kept)
        for i, row in enumerate([3, 0, 3]):
            close(last[i], model.hidden(torch.cat([texts[row], step[i : i + 1]], 1))[0, -1:])


def test_a_cache_says_what_it_cannot_do():
    model, cache = build(), KVCache(CONFIG, 2, 8)
    with pytest.raises(ValueError, match="9 positions exceed the cache's max_len 8"):
        model.hidden(draw(2, 9), cache)
    with pytest.raises(ValueError, match="3 rows of tokens for a cache of 2 rows"):
        model.hidden(draw(3, 2), cache)
    with pytest.raises(ValueError, match="one row"):
        cache.expand(4)


# Weights


def test_weights_depend_on_the_seed_alone():
    first, second, other = GPT(CONFIG), GPT(CONFIG), GPT(CONFIG)
    torch.manual_seed(1)
    first.init_weights(3)
    torch.manual_seed(2)
    second.init_weights(3)
    other.init_weights(4)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    assert not torch.equal(first.wte.weight, other.wte.weight)


def test_weights_start_as_the_list_says():
    model = GPT(dataclasses.replace(CONFIG, vocab_size=4096, n_embd=96, n_layer=3))
    model.init_weights(0)
    state = model.state_dict()
    width = 96**-0.5
    expected = {
        "wte.weight": 0.8,
        "lm_head.weight": 0.001,
        "blocks.0.attn.c_q.weight": width,
        "blocks.1.attn.c_v.weight": width,
        "blocks.2.mlp.c_fc.weight": 0.4 * width,
        "value_embeds.2.weight": width,
    }
    for name, deviation in expected.items():
        assert state[name].std().item() == pytest.approx(deviation, rel=0.05), name
        assert abs(state[name].mean().item()) < 0.05 * deviation, name
    assert not any(value.any() for name, value in state.items() if "c_proj" in name)
    torch.testing.assert_close(state["resid_scale"], torch.tensor([1.15, 1.10, 1.05]))
    torch.testing.assert_close(state["x0_scale"], torch.tensor([0.20, 0.125, 0.05]))
    assert state["smear_scale"].item() == 0.0
    assert state["backout_scale"].item() == pytest.approx(0.2)
    assert state["blocks.0.attn.value_gate.weight"].min() >= 0
    assert state["blocks.0.attn.value_gate.weight"].max() <= 0.02
    assert {name for name in state if name.startswith("value_embeds")} == {
        "value_embeds.0.weight",
        "value_embeds.2.weight",
    }


def test_configuration_round_trips_and_derives():
    assert ModelConfig.from_json({**CONFIG.to_json(), "loader": "reference"}) == CONFIG
    config = ModelConfig.from_recipe({"n_layer": 6, "seq_len": 2048, "title": "x"}, 1000)
    assert config.windows == (512, 512, 512, 2048, 512, 2048)
    assert config.padded_vocab_size == 1024
    with pytest.raises(ValueError, match="window_pattern"):
        ModelConfig(100, window_pattern="SX")
    with pytest.raises(ValueError, match="multiple"):
        ModelConfig(100, n_kv_head=4)


# Training


def run_steps(steps, micro_batches=2):
    model = GPT(CONFIG)
    model.init_weights(0)
    optimizer = MuonAdamW(parameter_groups(model.place(), PRETRAIN))
    tokens = draw(micro_batches, 4, 25) % 7  # few enough tokens to learn in no time
    batches = [(t[:, :-1], t[:, 1:]) for t in tokens]
    schedule = ScheduleConfig(warmup_steps=2)
    losses = [
        train_step(model, optimizer, batches, schedule_at(step / steps, step, schedule))
        for step in range(steps)
    ]
    return model, losses


def test_training_learns_and_two_runs_agree_bit_for_bit():
    (first, losses), (second, again) = run_steps(20), run_steps(20)
    assert losses == again
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    assert losses[0] == pytest.approx(4.4998, abs=0.02)  # ln 90
    assert losses[-1] < 2.5


def test_micro_batches_of_unequal_targets_weigh_every_target_the_same():
    tokens, targets = draw(4, 24), draw(4, 24, seed=6)
    targets[0, 2:] = -1
    results = []
    for size in (4, 1):
        model = build()
        optimizer = MuonAdamW(parameter_groups(model, PRETRAIN))
        batches = list(zip(tokens.split(size), targets.split(size), strict=True))
        loss = train_step(model, optimizer, batches, schedule_at(0.5, 9, ScheduleConfig()))
        results.append((loss, model.lm_head.weight.detach()))
        assert all(p.grad is None for p in model.parameters())  # the next step starts from nothing
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    close(results[0][1], results[1][1])

"""The fused loss in Triton's interpreter against the plain path."""

import torch

from reference.kernels import triton_loss
from reference.model import loss

loss.FUSED_CHUNK_BYTES = 64 * 128 * 4  # several chunks, the last one short
worst = 0.0
for softcap in (15.0, 2.0, 0.0):
    for vocab, block in ((100, 32), (128, 256), (1, 64)):
        g = torch.Generator().manual_seed(vocab)
        hidden = 3 * torch.randn(150, 16, generator=g)
        hidden[5] = 0.0
        weight = torch.randn(128, 16, generator=g)
        weight[vocab:] = 1e4  # padding must not be seen
        targets = torch.randint(0, vocab, (150,), generator=g)
        targets[::7] = -1
        targets[64:128] = -100  # a whole chunk without a target
        scale = (targets >= 0) * torch.linspace(-1, 2, 150)
        plain = loss._loss_and_gradients(hidden, weight, targets, scale, vocab, softcap)
        triton_loss.BLOCK = block
        fused = loss.fused_loss_and_gradients(hidden, weight, targets, scale, vocab, softcap)
        for a, b in zip(plain, fused, strict=True):
            worst = max(worst, float((a - b).abs().max() / a.abs().max().clamp_min(1.0)))
        kept = (hidden @ weight.T).contiguous()
        before = kept.clone()
        only = triton_loss.losses_(kept, targets, None, vocab_size=vocab, softcap=softcap)
        assert torch.equal(kept, before), "without row_scale the logits stay"
        assert torch.allclose(only, plain[0], rtol=1e-5, atol=1e-5)
assert worst < 3e-6, worst

# Large logits without a cap; a row with a NaN has a loss of NaN, its neighbours do not.
logits = torch.randn(4, 128) * 1e4
logits[2, 7] = float("nan")
targets = torch.tensor([3, 4, 5, 6])
expected = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
got = triton_loss.losses_(logits, targets, torch.ones(4), vocab_size=128, softcap=0.0)
assert torch.isnan(got[2]) and not torch.isnan(got[[0, 1, 3]]).any()
assert torch.allclose(got[[0, 1, 3]], expected[[0, 1, 3]], rtol=1e-5)

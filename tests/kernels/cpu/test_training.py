"""The ways back, compared with torch's own differentiation of the reference operations."""

from __future__ import annotations

import pytest
import torch
from hagane.kernels import cpu, reference
from hagane.kernels.cpu import training

pytestmark = pytest.mark.skipif(not cpu.available(), reason="the kernels were not built")
CLOSE = {torch.float32: {"atol": 1e-5, "rtol": 1e-4}, torch.bfloat16: {"atol": 0.1, "rtol": 0.05}}


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def dtype(request):
    torch.manual_seed(0)
    cpu.start(1)
    return request.param


def compare(dtype, run, *inputs):
    """Results and gradients of `run(operations, *inputs)` with both backends."""
    found = []
    for operations in (training, reference):
        mine = [x.detach().clone().requires_grad_() for x in inputs]
        results = run(operations, *mine)
        results = results if isinstance(results, tuple) else (results,)
        weights = [torch.linspace(-1, 1, r.numel()).view(r.shape).to(dtype) for r in results]
        sum((r * w).float().sum() for r, w in zip(results, weights, strict=True)).backward()
        found.append([*results, *(x.grad for x in mine)])
    for ours, wanted in zip(*found, strict=True):
        torch.testing.assert_close(ours, wanted, **CLOSE[dtype])


@pytest.mark.parametrize("features", [16, 40, 64])
def test_rms_norm(dtype, features):
    weight = torch.rand(features).to(dtype)
    x = torch.randn(7, features).to(dtype)
    compare(dtype, lambda operations, x: operations.rms_norm(x, weight, 1e-6), x)


@pytest.mark.parametrize("features", [16, 40])
def test_silu_and_mul(dtype, features):
    compare(
        dtype,
        lambda operations, x: operations.silu_and_mul(x),
        torch.randn(5, 2 * features).to(dtype),
    )


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("head_dim", [16, 64])
def test_rotate(dtype, normed, head_dim):
    norms = tuple(torch.rand(head_dim).to(dtype) for _ in range(2)) if normed else None
    cos, sin = reference.rope_tables(torch.arange(6), torch.rand(head_dim // 2), 1.0)
    options = {"heads": 4, "kv_heads": 2, "norms": norms, "eps": 1e-6}
    qkv = torch.randn(6, 8 * head_dim).to(dtype)
    compare(dtype, lambda operations, x: operations.apply_rope(x.clone(), cos, sin, **options), qkv)


@pytest.mark.parametrize("window", [None, 5, 300])
@pytest.mark.parametrize("length", [1, 9, 300, 520])
def test_attention(dtype, length, window):
    q = torch.randn(length, 4, 16).to(dtype)
    k, v = (torch.randn(length, 2, 16).to(dtype) for _ in range(2))
    compare(
        dtype,
        lambda operations, *x: operations.causal_attention(*x, rows=1, window=window),
        q, k, v,
    )  # fmt: skip


@pytest.mark.parametrize("window", [None, 5, 70])
@pytest.mark.parametrize("head_dim", [16, 40, 64])
@pytest.mark.parametrize("lengths", [[1], [130, 1, 64, 65], [33, 200]])
def test_attention_of_sequences(dtype, lengths, head_dim, window):
    tokens = sum(lengths)
    qkv = torch.randn(tokens, 8, head_dim).to(dtype)

    def run(operations, qkv):
        q, k, v = qkv.split((4, 2, 2), dim=1)
        return operations.sequence_attention(q, k, v, lengths=lengths, window=window)

    compare(dtype, run, qkv)


def test_attention_is_the_same_with_any_number_of_threads():
    torch.manual_seed(0)
    qkv, found = torch.randn(300, 8, 32).bfloat16(), []
    for threads in (1, 2):
        cpu.start(threads)
        x = qkv.clone().requires_grad_()
        q, k, v = x.split((4, 2, 2), dim=1)
        out = training.sequence_attention(q, k, v, lengths=[250, 50], window=None)
        out.sum().backward()
        found.append((out, x.grad))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("vocab", [16, 100])
def test_token_scores(dtype, vocab):
    logits = (3 * torch.randn(9, vocab)).to(dtype)
    targets = torch.randint(vocab, (9,))
    targets[:3] = logits[:3].argmax(1)
    wide = logits.float().requires_grad_()
    wanted = torch.log_softmax(wide, 1).gather(1, targets[:, None])[:, 0]
    wanted.sum().backward()
    for operations in (training, reference):
        gradients = logits.clone()
        logprobs, first = operations.token_scores(gradients, targets, gradients=True)
        torch.testing.assert_close(logprobs, wanted.detach(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(gradients.float(), wide.grad, **CLOSE[dtype])
        assert first.tolist() == (logits.argmax(1) == targets).tolist()

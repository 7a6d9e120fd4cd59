"""Operations with ways back to every weight, compared with torch's own differentiation."""

from __future__ import annotations

import pytest
import torch
from hagane.kernels import cpu, reference
from hagane.kernels.cpu.pretraining import Pretraining
from torch.nn import functional as F  # noqa: N812

pytestmark = pytest.mark.skipif(not cpu.available(), reason="the kernels were not built")
CLOSE = {torch.float32: {"atol": 1e-5, "rtol": 1e-4}, torch.bfloat16: {"atol": 0.1, "rtol": 0.05}}


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def dtype(request):
    torch.manual_seed(0)
    cpu.start(1)
    return request.param


def compare(dtype, ours, reference, *inputs):
    """Results of both, and their gradients by all inputs."""
    found = []
    for run in (ours, reference):
        mine = [x.detach().clone().requires_grad_() for x in inputs]
        results = run(*mine)
        results = results if isinstance(results, tuple) else (results,)
        weights = [torch.linspace(-1, 1, r.numel()).view(r.shape) for r in results]
        sum((r.float() * w).sum() for r, w in zip(results, weights, strict=True)).backward()
        found.append([*results, *(x.grad for x in mine)])
    for mine, wanted in zip(*found, strict=True):
        torch.testing.assert_close(mine.float(), wanted.float(), **CLOSE[dtype])


@pytest.mark.parametrize("features", [16, 40, 384])
def test_rms_norm(dtype, features):
    x, weight = torch.randn(150, features), 0.5 + torch.rand(features)
    ours = Pretraining(dtype).rms_norm
    assert ours(x, weight, 1e-6).dtype == dtype
    compare(
        dtype,
        lambda x, w: ours(x, w, 1e-6),
        lambda x, w: reference.rms_norm(x, w, 1e-6),
        x,
        weight,
    )


@pytest.mark.parametrize("normed", [False, True])
def test_rotate(dtype, normed):
    cos, sin = reference.rope_tables(torch.arange(6), torch.rand(8), 1.0)
    qkv = torch.randn(6, 8 * 16).to(dtype)
    norms = [0.5 + torch.rand(16) for _ in range(2)] if normed else []

    def run(operations):
        def apply_rope(x, *norms):
            return operations.apply_rope(
                x * 1, cos, sin, heads=4, kv_heads=2, norms=norms or None, eps=1e-6
            )

        return apply_rope

    compare(dtype, run(Pretraining(dtype)), run(reference), qkv, *norms)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_linear(dtype, bias, residual):
    given = [torch.randn(9, 24).to(dtype), torch.randn(32, 24)]
    given += [torch.randn(32)] if bias else []
    given += [torch.randn(9, 32)] if residual else []

    def ours(x, weight, *rest):
        rest = list(rest)
        b = rest.pop(0) if bias else None
        return Pretraining(dtype).linear(x, weight, b, rest[0] if residual else None)

    def wanted(x, weight, *rest):
        return F.linear(x.float(), weight, rest[0] if bias else None) + (
            rest[-1] if residual else 0
        )

    compare(dtype, ours, wanted, *given)


@pytest.mark.parametrize("logits", [1 << 24, 300])
def test_mean_loss(dtype, logits):
    count = 27
    hidden, weight = torch.randn(count, 24).to(dtype), 0.3 * torch.randn(50, 24)
    targets = torch.randint(50, (count,))
    compare(
        dtype,
        lambda h, w: 3 * Pretraining(dtype, logits).mean_loss(h, w, targets),
        lambda h, w: 3 * F.cross_entropy(F.linear(h.float(), w), targets),
        hidden,
        weight,
    )
    each = Pretraining(dtype).losses(hidden, weight, targets)
    wanted = F.cross_entropy(F.linear(hidden.float(), weight), targets, reduction="none")
    torch.testing.assert_close(each, wanted, **CLOSE[dtype])


@pytest.mark.parametrize("window", [None, 5, 150])
@pytest.mark.parametrize("length", [1, 9, 150, 260])
def test_attention_of_several_rows(dtype, length, window):
    q, k, v = (torch.randn(3 * length, heads, 16).to(dtype) for heads in (4, 2, 2))
    compare(
        dtype,
        *(
            lambda *x, o=operations: o.causal_attention(*x, rows=3, window=window)
            for operations in (Pretraining(dtype), reference)
        ),
        q, k, v,
    )  # fmt: skip


def test_gradients_do_not_depend_on_the_threads(dtype):
    operations = Pretraining(dtype)
    x, weight = torch.randn(1000, 384), torch.rand(384)
    q, k, v = (torch.randn(600, 2, 64).to(dtype) for _ in range(3))
    found = []
    for start in (lambda: cpu.start(1), lambda: cpu.start_beside_torch(2)):
        start()
        mine = [t.detach().clone().requires_grad_() for t in (x, weight, q, k, v)]
        operations.rms_norm(*mine[:2], 1e-6).float().square().sum().backward()
        out = operations.causal_attention(*mine[2:], rows=2, window=None)
        out.float().square().sum().backward()
        found.append([t.grad for t in mine])
    for alone, together in zip(*found, strict=True):
        assert torch.equal(alone, together)

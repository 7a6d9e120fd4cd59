"""The loss of group-relative policy optimisation compared with its formula, token by token."""

from __future__ import annotations

import torch
from hagane.training.reinforce.policy_loss import advantages, policy_loss

KL = 0.1


def test_advantages_are_relative_to_the_group_and_not_scaled():
    found = advantages(torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.5, 0.5, 0.5, 0.5]]))
    assert found.tolist() == [[0.5, -0.5, -0.5, 0.5], [0.0] * 4]


def test_loss_and_gradient_follow_the_formula():
    generator = torch.Generator().manual_seed(0)
    logprobs = torch.randn(400, generator=generator, dtype=torch.float64).mul(0.5).sub(2)
    sampled = logprobs + 0.3 * torch.randn(400, generator=generator, dtype=torch.float64)
    base = logprobs + 0.3 * torch.randn(400, generator=generator, dtype=torch.float64)
    advantage = torch.randn(400, generator=generator, dtype=torch.float64)
    own = logprobs.clone().requires_grad_()
    loss = policy_loss(own, sampled, base, advantage, KL)
    loss.total.backward()
    total, clipped = 0.0, 0
    for place in range(400):
        one = logprobs[place].clone().requires_grad_()
        ratio, gain = torch.exp(one) / torch.exp(sampled[place]), advantage[place]
        surrogate = ratio * gain
        if gain > 0 and ratio > 1.28:
            surrogate, clipped = 1.28 * gain + 0 * one, clipped + 1
        if gain < 0 and ratio < 0.8:
            surrogate, clipped = 0.8 * gain + 0 * one, clipped + 1
        gap = base[place] - one
        wanted = -surrogate + KL * (gap.exp() - gap - 1)
        wanted.backward()
        total += wanted.item()
        torch.testing.assert_close(own.grad[place], one.grad)
    torch.testing.assert_close(loss.total.item(), total)
    assert loss.clipped == clipped > 10


def test_what_was_sampled_from_the_model_itself_is_not_clipped():
    own = torch.tensor([-1.0, -3.0], requires_grad=True)
    loss = policy_loss(own, own.detach(), None, torch.tensor([2.0, -1.0]), 0.0)
    loss.total.backward()
    # The gradient of a log-probability is then the negated advantage.
    assert own.grad.tolist() == [-2.0, 1.0]
    assert (loss.clipped, loss.divergence) == (0, 0.0)

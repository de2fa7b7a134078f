import pytest
import torch

from di4c_lm.losses.mdlm import log_linear_weight
from di4c_lm.losses.reading import read_mixture
from di4c_lm.processes.denoiser import LinearHead, Positions
from di4c_lm.processes.masked import LogLinear


def test_it_is_the_weighted_negative_log_likelihood_of_the_masked_tokens() -> None:
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 5, generator=rng, dtype=torch.float64).requires_grad_()
    x_0 = torch.randint(5, (2, 4), generator=rng)
    masked = torch.tensor([[True, False, True, False], [False] * 4])
    positions, weight = Positions.where(masked), torch.tensor([3.0, 2.0], dtype=torch.float64)
    output_head = LinearHead(torch.eye(5, dtype=torch.float64))
    features_M1S, targets_M1 = logits[positions.example, positions.position][:, None], positions.gather(x_0)[:, None]
    read = read_mixture(features_M1S, positions.position, output_head, targets_M1, chunk_rows=1)
    bound_B = -weight * read.summed(positions).joint[:, 0]
    nll = torch.nn.functional.cross_entropy(logits.transpose(1, 2), x_0, reduction="none")
    expected = weight * (nll * masked).sum(1)
    torch.testing.assert_close(bound_B, expected)
    assert float(bound_B[1].detach()) == 0
    gradients = [torch.autograd.grad(value.sum(), logits, retain_graph=True)[0] for value in (bound_B, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("eps", [0.0, 1e-3, 0.2])
def test_the_weight_is_the_log_slope_of_the_schedule(eps: float) -> None:
    t = torch.tensor([0.01, 0.5, 1.0], dtype=torch.float64).requires_grad_()
    (slope,) = torch.autograd.grad(LogLinear(eps=eps).mask_prob(t).log().sum(), t)
    torch.testing.assert_close(log_linear_weight(t.detach()), slope)

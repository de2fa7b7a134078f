"""A network as a prediction of x_0: asked where something is needed, with one λ a sequence."""

from typing import Any

import torch
from torch import Tensor

from di4c_lm.processes.denoiser import Denoiser, LinearHead, Prediction, predictor, row_chunks, rows_at_once
from di4c_lm.processes.rng import KeyedRng, uniform

S, D = 4, 3


class Peaked:
    """Each sequence's every position is the state that λ, the condition and the first token of x_t add up to, but for one in e^9."""

    def __init__(self) -> None:
        self.asked: list[tuple[Tensor, Tensor]] = []

    def sample_latents(self, num_batch: int, num_lambdas: int, rng: Any, device: Any) -> Tensor:
        return (uniform(rng, (num_batch, num_lambdas, 1), device) * 2).float()

    def __call__(self, x_t: Tensor, t: Tensor, lam: Tensor | None = None, cond: Tensor | None = None) -> Prediction:
        self.asked.append((x_t, t))
        assert lam is not None and cond is not None
        peak_B = (lam[:, 0, 0].long() + cond + x_t[:, 0]) % S
        logits_BS = 10.0 * torch.nn.functional.one_hot(peak_B, S)
        return Prediction(logits_BS[:, None, None].expand(-1, 1, x_t.shape[1], -1), self.output_head())

    def output_head(self) -> LinearHead:
        return LinearHead(torch.eye(S))


def test_a_network_is_asked_for_the_sequences_that_need_it() -> None:
    network, count = Peaked(), 400
    assert isinstance(network, Denoiser)
    x_t = torch.arange(count)[:, None].repeat(1, D) % S
    needed, cond = torch.zeros(count, D, dtype=torch.bool), torch.arange(count) // S % S
    needed[::2, 1] = True
    t = torch.linspace(0.1, 1, count, dtype=torch.float64)
    rng, again = KeyedRng(0, torch.arange(count)), KeyedRng(0, torch.arange(count))
    x_0 = predictor(network, cond)(x_t, t, needed, rng)
    ((seen, times),) = network.asked
    assert torch.equal(seen, x_t[::2]) and torch.equal(times, t[::2].float())
    assert torch.equal(x_0[~needed], x_t[~needed])
    lam = (again.uniform((count, 1, 1)) * 2).float()[:, 0, 0].long()
    assert float((x_0[::2, 1] == ((lam + cond + x_t[:, 0]) % S)[::2]).double().mean()) > 0.97
    again.uniform((count, D))
    assert torch.equal(rng.uniform((count, 1)), again.uniform((count, 1))), "λ, then x_0: two tensors of the rng"


def test_where_nothing_is_needed_no_call_is_made() -> None:
    network, x_t = Peaked(), torch.zeros(5, D, dtype=torch.int64)
    nothing = torch.zeros(5, D, dtype=torch.bool)
    x_0 = predictor(network)(x_t, torch.ones(5).double(), nothing, KeyedRng(0, torch.arange(5)))
    assert torch.equal(x_0, x_t) and not network.asked


def test_chunks_cover_the_rows() -> None:
    assert [list(range(7))[rows] for rows in row_chunks(7, 3)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert rows_at_once(LinearHead(torch.eye(S)), 0) == 2**23 // S and rows_at_once(LinearHead(torch.eye(S)), 5) == 5

"""λ by adaLN, beside what it shares with the token (tests/mixtures/test_token.py)."""

import pytest
import torch

from di4c_lm.mixtures.adaln import AdaLNSettings
from di4c_lm.mixtures.base import Latents
from tests.mixtures.helpers import on_dit, sampled, scalars
from tests.networks.helpers import BLOCKS, dit, half, tokens


@pytest.mark.parametrize("inject_at", range(BLOCKS))
def test_a_modulation_of_zero_is_the_teacher(inject_at: int) -> None:
    student = on_dit(AdaLNSettings(inject_at=inject_at))
    for weight in student.latent_modulation.parameters():
        weight.data.zero_()
    found = student(tokens(2), half(2), scalars(2, 3)).log_probs()
    expected = dit()(tokens(2), half(2)).log_probs().expand(-1, 3, -1, -1)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_codes_are_read_each_by_its_own_vector() -> None:
    mixture = on_dit(AdaLNSettings(distribution="codebook", codebook_size=4, inject_at=1))
    every = sampled(mixture, 2, 4)
    log_p = mixture(tokens(2), half(2), every).log_probs()
    reversed_p = mixture(tokens(2), half(2), Latents(every.value.flip(1))).log_probs()
    torch.testing.assert_close(log_p.flip(1), reversed_p)
    assert (log_p[:, 0] - log_p[:, 1]).abs().max() > 1e-3


def test_bfloat16_stays_near() -> None:
    exact, narrow = on_dit(AdaLNSettings(inject_at=1)), on_dit(AdaLNSettings(inject_at=1)).to(torch.bfloat16)
    found = narrow(tokens(2), half(2), scalars(2, 2))
    assert found.features.dtype == torch.bfloat16
    assert found.log_probs().dtype == torch.float32
    expected = exact(tokens(2), half(2), scalars(2, 2)).features
    assert (found.features.double() - expected).norm() < 0.05 * expected.norm()


def test_a_negative_block_counts_from_the_end() -> None:
    last = on_dit(AdaLNSettings(inject_at=-1))
    assert last.inject_at == BLOCKS - 1
    assert [name for name in last.latent_modulation] == [str(BLOCKS - 1)]


def test_equal_sequences_run_the_blocks_before_lambda_once() -> None:
    mixture, rows = on_dit(AdaLNSettings(inject_at=2)), []
    for block in mixture.network.blocks:
        block.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    x_t = tokens(2).repeat(4, 1)
    with torch.no_grad():
        mixture(x_t, half(8), scalars(8, 1))
    assert rows == [2, 2, 8]

"""Padding that no one sees, and records in one row that do not see each other: the same as each record alone."""

from typing import Any

import pytest
import torch
from torch import Tensor

from di4c_lm.mixtures.class_chain import ClassChainSettings
from di4c_lm.mixtures.codes import CodesSettings
from di4c_lm.mixtures.sequential import SequentialSettings
from di4c_lm.mixtures.token import TokenSettings
from di4c_lm.networks.base import Within
from di4c_lm.networks.decoder import Decoder, DecoderConfig
from di4c_lm.networks.dit import DIT, DitConfig
from di4c_lm.processes.denoiser import Positions
from di4c_lm.processes.rng import KeyedRng

S = 11
DECODER = DecoderConfig(hidden_size=16, num_blocks=2, num_heads=4, num_kv_heads=2, head_dim=4, mlp_size=24)
NETWORKS: dict[str, tuple[type, Any]] = {
    "decoder": (Decoder, DECODER),
    "dream": (Decoder, DecoderConfig(**{**vars(DECODER), "shift": True, "qkv_bias": True})),
    "dit": (DIT, DitConfig(hidden_size=16, num_blocks=2, num_heads=2, cond_dim=8, time_conditioning=True)),
}
RECORDS = [torch.tensor([[1, 2, S - 1, S - 1, 3]]), torch.tensor([[S - 1, 4, S - 1]])]
PACKED = torch.tensor([[*RECORDS[0][0].tolist(), *RECORDS[1][0].tolist(), 5, 5]])
SEGMENTS = torch.tensor([[1] * 5 + [2] * 3 + [0] * 2])
PADDED = torch.cat([RECORDS[0], torch.full((1, 4), 6)], 1), torch.tensor([[1] * 5 + [0] * 4])
T = torch.tensor([0.6])


def network(kind: str) -> Any:
    torch.manual_seed(0)
    made, config = NETWORKS[kind]
    found = made(config, num_states=S)
    for parameter in found.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return found.eval()


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("shares", [False, True])
def test_a_record_s_logits_are_those_of_the_record_alone(kind: str, shares: Any) -> None:
    one = network(kind)
    with torch.set_grad_enabled(not shares):
        x_t, segments = PACKED.repeat(2, 1), SEGMENTS.repeat(2, 1)
        together = one(x_t, T.repeat(2), None, segments, share=True).log_probs()[1, 0]
        alone = torch.cat([one(x, T).log_probs()[0, 0] for x in RECORDS])
        blind = one(PACKED, T).log_probs()[0, 0]
    torch.testing.assert_close(together[:8], alone, rtol=0, atol=1e-5)
    assert (blind[:8] - alone).abs().max() > 1e-2


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize(
    "settings",
    [
        TokenSettings(),
        CodesSettings(codebook_size=3, window=2),
        SequentialSettings(),
        ClassChainSettings(codebook_size=3),
    ],
)
def test_padding_has_no_part_in_what_a_mixture_says(kind: str, settings: Any) -> None:
    student, (x_t, segments) = mixture_on(kind, settings), PADDED
    found = []
    for x, cond in ((RECORDS[0], None), (x_t, segments)):
        lam = student.training_latents(1, 2, KeyedRng(0, torch.zeros(1, dtype=torch.int64)), torch.device("cpu"))
        reading = student(x, T, lam, cond).read(Positions.where(x == S - 1), torch.tensor([[1], [7]]))
        found.append((reading.joint, reading.product))
    torch.testing.assert_close(*found, rtol=0, atol=1e-5)


def mixture_on(kind: str, settings: Any) -> Any:
    student = settings.over(network(kind), torch.Generator().manual_seed(0))
    for name, parameter in student.named_parameters():
        if student.learns_apart(name):
            torch.nn.init.normal_(parameter, std=0.4, generator=torch.Generator().manual_seed(len(name)))
    return student.eval()


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("positions", ["masked", "revealed"])
def test_a_chain_over_packed_records_is_a_chain_over_each(kind: str, positions: Any) -> None:
    student = mixture_on(kind, ClassChainSettings(codebook_size=3, positions=positions, rank=2))

    def joint(x_t: Tensor, target: list[int], cond: Tensor | None = None) -> Tensor:
        asked = Positions.where(x_t == S - 1), torch.tensor(target)[:, None]
        return student(x_t, T, student.every_code(1, x_t.device), cond).read(*asked).joint[0, 0]

    together, alone = joint(PACKED, [1, 2, 3, 4], SEGMENTS), (joint(RECORDS[0], [1, 2]), joint(RECORDS[1], [3, 4]))
    torch.testing.assert_close(together, sum(alone), rtol=0, atol=1e-5)
    assert (joint(PACKED, [1, 2, 3, 4]) - together).abs() > 1e-3


def test_what_sees_what() -> None:
    within = Within.of(torch.tensor([[1, 1, 2, 0]]), 1)
    sees = [[1, 1, 0, 0, 1], [1, 1, 0, 0, 1], [0, 0, 1, 0, 1], [0, 0, 0, 1, 1], [1, 1, 1, 0, 1]]
    assert within.mask[0, 0].int().tolist() == sees and not within.is_stretches
    assert within.position.tolist() == [[0, 1, 0, 0, 0]]


def test_stretches_of_all_rows_for_kernels_that_want_them() -> None:
    within = Within(torch.tensor([[1, 1, 2, 0], [1, 1, 1, 1]]))
    ends, longest = within.ends
    assert within.is_stretches and ends.tolist() == [0, 2, 3, 4, 8] and longest == 4
    assert within.position.tolist() == [[0, 1, 0, 0], [0, 1, 2, 3]]

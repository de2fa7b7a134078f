"""The decoder reads in both directions, knows its states from its rows, and is driven in stages as the DIT is."""

from typing import Any

import pytest
import torch
from torch import Tensor

from di4c_lm.mixtures.adaln import AdaLNSettings
from di4c_lm.mixtures.base import MixtureSettings
from di4c_lm.mixtures.class_chain import ClassChainSettings
from di4c_lm.mixtures.codes import CodesSettings
from di4c_lm.mixtures.sequential import SequentialSettings
from di4c_lm.mixtures.token import TokenSettings
from di4c_lm.networks.base import Rows, attend, product
from di4c_lm.networks.decoder import Decoder, DecoderStages
from di4c_lm.processes.denoiser import Denoiser, Positions
from di4c_lm.processes.rng import KeyedRng
from tests.networks.helpers import BLOCKS, LENGTH, STATES, decoder, decoder_config, fill, half, tokens

KINDS = [{}, {"qkv_bias": True}, {"qk_norm": True}, {"tied": True}, {"shift": True}]
MIXTURES = [
    ClassChainSettings(codebook_size=3),
    CodesSettings(codebook_size=3, window=2),
    AdaLNSettings(inject_at=1),
    TokenSettings(inject_at=1),
    SequentialSettings(),
]


def masked(num_batch: int, seed: int = 0) -> Tensor:
    """Sequences in which MASK, state 4, stands at some positions."""
    x_t = tokens(num_batch, seed)
    x_t[:, ::2] = 4
    return x_t


@pytest.mark.parametrize("settings", KINDS)
def test_neither_mask_nor_rows_without_a_token_are_predicted(settings: dict[str, Any]) -> None:
    network = decoder(**settings)
    assert isinstance(network, Denoiser) and (network.mask_id, network.num_states) == (4, STATES)
    p = network(masked(2), half(2)).log_probs().exp()
    assert p.shape == (2, 1, LENGTH, STATES) and bool((p[..., 4] == 0).all())
    torch.testing.assert_close(p.sum(-1), torch.ones(2, 1, LENGTH).double())
    assert len(network.embed_tokens.weight) == STATES + 2


def test_rows_without_a_token_get_no_gradient() -> None:
    network = decoder()
    network(masked(2), half(2)).log_probs()[..., :4].sum().backward()
    grad: Any = network.lm_head.weight.grad
    assert bool(grad[:STATES].abs().sum(1).ne(0).any()) and bool((grad[STATES:] == 0).all())


def test_every_position_is_seen_from_every_other() -> None:
    network, x_t = decoder(), masked(1)
    features = network(x_t, half(1)).features[0, 0]
    for position in range(LENGTH):
        other = x_t.clone()
        other[0, position] = (other[0, position] + 1) % STATES
        moved = (network(other, half(1)).features[0, 0] - features).abs().amax(1)
        assert bool((moved > 1e-6).all())


def test_shift_reads_each_position_one_earlier_and_the_first_at_itself() -> None:
    plain, shifted = decoder(), decoder(shift=True)
    expected = plain(masked(2), half(2)).features
    found = shifted(masked(2), half(2)).features
    assert torch.equal(found[:, :, 1:], expected[:, :, :-1]) and torch.equal(found[:, :, :1], expected[:, :, :1])


def test_heads_of_keys_are_shared_side_by_side() -> None:
    rng = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 5, heads, 4, generator=rng, dtype=torch.float64) for heads in (4, 2, 2))
    torch.testing.assert_close(attend(q, k, v), attend(q, k.repeat_interleave(2, 2), v.repeat_interleave(2, 2)))


@pytest.mark.parametrize("settings", KINDS)
def test_stages_taken_apart_are_the_whole(settings: dict[str, Any]) -> None:
    network = decoder(**settings)
    x_t = masked(2).repeat(2, 1)
    expected = network(x_t, half(4)).features.expand(-1, 3, -1, -1)

    def by_blocks(stages: DecoderStages) -> Rows:
        stages.run(1)
        stages.repeat(3)
        return Rows(stages.features().unflatten(0, (-1, 3)), stages.output_head)

    def by_the_last_mlp(stages: DecoderStages) -> Rows:
        assert stages.before_last_mlp().shape == (4, LENGTH, 16)
        return Rows(stages.last_mlp(torch.zeros(1, 3, 1, 64).double()), stages.output_head)

    for drive in (by_blocks, by_the_last_mlp):
        torch.testing.assert_close(network(x_t, half(4), drive=drive).features, expected, rtol=1e-9, atol=1e-9)
        with torch.no_grad():
            shared = network(x_t, half(4), drive=drive, share=True).features
        torch.testing.assert_close(shared, expected, rtol=1e-9, atol=1e-9)


def test_equal_sequences_share_a_row_where_no_gradient_is_recorded() -> None:
    network, rows = decoder(), []
    for block in network.layers:
        block.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    with torch.no_grad():
        network(masked(2).repeat(4, 1), half(8), share=True)
    network(masked(2).repeat(4, 1), half(8), share=True)
    assert rows == [2] * BLOCKS + [8] * BLOCKS


@pytest.mark.parametrize("mixture", MIXTURES, ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("shift", [False, True])
def test_every_mixture_drives_it(mixture: MixtureSettings, *, shift: bool) -> None:
    sizes = {"num_states": STATES, "num_rows": STATES + 2, "mask_id": 4}
    student = fill(mixture.fresh(Decoder, decoder_config(shift=shift), sizes))
    fill(student.network)
    x_t = masked(2)
    lam = student.training_latents(2, 3, KeyedRng(0, torch.arange(2)), x_t.device)
    prediction = student(x_t, half(2), lam)
    positions = Positions.where(x_t == 4)
    p = prediction.marginals(positions)
    torch.testing.assert_close(p.sum(1), torch.ones(len(p)).double())
    assert bool((p[:, 4] == 0).all())
    prediction.read(positions, torch.full((len(p), 1), 3)).joint.sum().backward()
    grads = [parameter.grad for name, parameter in student.named_parameters() if student.learns_apart(name)]
    assert any(grad is not None and bool(grad.abs().sum() > 0) for grad in grads)


def test_a_class_chain_keeps_its_marginals() -> None:
    """Of the position that is predicted, where the logits are shifted too."""
    settings = ClassChainSettings(codebook_size=3, sinkhorn_iterations=50)
    sizes = {"num_states": STATES, "num_rows": STATES + 2, "mask_id": 4}
    student = fill(settings.fresh(Decoder, decoder_config(shift=True), sizes))
    network, x_t = fill(student.network), masked(2)
    positions = Positions.where(x_t == 4)
    lam = student.training_latents(2, 3, KeyedRng(0, torch.arange(2)), x_t.device)
    found, expected = (one.marginals(positions) for one in (student(x_t, half(2), lam), network(x_t, half(2))))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_recomputed_activations_give_the_same_gradients() -> None:
    grads = []
    for recompute in (False, True):
        network = decoder(qk_norm=True)
        network.activation_checkpointing = recompute
        network(masked(2), half(2)).log_probs()[..., :4].square().mean().backward()
        grads.append({name: p.grad for name, p in network.named_parameters()})
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-12, atol=1e-12)


def test_rotary_positions_are_turned_in_float32() -> None:
    """Rounded to bfloat16, the phase of a late position would be off by radians."""
    network = decoder().bfloat16()
    stages = network.stages(masked(1), half(1), None, share=False)
    cos, sin, *_ = stages.given
    assert cos.dtype == sin.dtype == torch.float32
    assert product(stages).features.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "settings, complaint",
    [
        ({"num_kv_heads": 3}, "num_kv_heads must be a divisor of num_heads = 4, got 3"),
        ({"head_dim": 5}, "head_dim must be even, got 5"),
        ({"mlp_size": 0}, "mlp_size must be above 0, got 0"),
    ],
)
def test_settings_that_are_impossible(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        decoder_config(**settings)


@pytest.mark.parametrize(
    "sizes, complaint",
    [
        ({"num_states": 5, "mask_id": 5}, "mask_id must be one of the 5 states, got 5"),
        ({"num_states": 5, "num_rows": 4}, "num_states must be at most the 4 rows of the vocabulary, got 5"),
    ],
)
def test_sizes_that_are_impossible(sizes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Decoder(decoder_config(), **sizes)

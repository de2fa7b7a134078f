import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from di4c_lm.networks.base import Rows
from di4c_lm.networks.dit import DIT, DitStages, distinct, modulated_norm
from di4c_lm.processes.denoiser import Denoiser, OutputHead
from tests.networks.helpers import BLOCKS, LENGTH, STATES, dit, dit_config, fill, half, tokens


def test_time_conditioning() -> None:
    early, late = torch.tensor([0.1, 0.1]), torch.tensor([0.9, 0.9])
    for conditioned in (False, True):
        network = dit(time_conditioning=conditioned)
        features = [network(tokens(2), t).features for t in (early, late)]
        assert torch.equal(*features) is not conditioned
    network = dit(time_conditioning=True)
    mixed = network(tokens(2), torch.tensor([0.1, 0.9])).features
    torch.testing.assert_close(mixed[0], network(tokens(2), early).features[0])
    torch.testing.assert_close(mixed[1], network(tokens(2), late).features[1])


def test_mask_is_never_predicted() -> None:
    network = dit()
    assert isinstance(network, Denoiser) and network.mask_id == STATES - 1
    p = network(tokens(2), half(2)).log_probs().exp()
    assert bool((p[..., STATES - 1] == 0).all())
    torch.testing.assert_close(p.sum(-1), torch.ones(2, 1, LENGTH).double())


def test_positions_matter_but_not_the_batch() -> None:
    network, x_t = dit(), tokens(3)
    features = network(x_t, half(3)).features
    torch.testing.assert_close(network(x_t[1:2], half(1)).features, features[1:2])
    rolled = network(x_t.roll(1, 1), half(3)).features.roll(-1, 2)
    assert (rolled - features).abs().max() > 1e-3


def test_gradients_are_right() -> None:
    """Double-checked by differences, through norm, modulation and attention."""
    network = dit(hidden_size=4, num_heads=1, cond_dim=2)
    parameters = dict(network.named_parameters())
    names = [
        "blocks.0.norm1.weight",
        "blocks.1.adaLN_modulation.bias",
        "blocks.2.attn_qkv.weight",
        "output_layer.norm_final.weight",
    ]

    def loss(*values: torch.Tensor) -> torch.Tensor:
        swapped = {**parameters, **dict(zip(names, values, strict=True))}
        return torch.func.functional_call(network, swapped, (tokens(1), half(1))).features.sin().sum()

    assert torch.autograd.gradcheck(loss, [parameters[name] for name in names], fast_mode=True)


def test_a_fresh_network_predicts_nothing() -> None:
    p = DIT(dit_config(), num_states=STATES)(tokens(2), half(2)).log_probs().exp()
    torch.testing.assert_close(p[..., :-1], torch.full((2, 1, LENGTH, STATES - 1), 1 / (STATES - 1)))


def test_a_tied_head_has_the_embedding_and_a_bias_of_its_own() -> None:
    apart, tied = dit(), dit(tied=True)
    of_both = [sum(p.numel() for p in network.parameters()) for network in (apart, tied)]
    assert of_both[0] - of_both[1] == STATES * tied.width
    head, table = tied.output_head(), tied.vocab_embed.embedding
    assert head.parameters[0] is table and head.parameters[1] is tied.output_layer.bias
    features, where = tied(tokens(2), half(2)).features[:, 0, 3], torch.tensor([3, 3])
    expected = features @ table.T + tied.output_layer.bias
    torch.testing.assert_close(head.logits(features, where)[:, :-1], expected[:, :-1])
    tied(tokens(2), half(2)).log_probs()[..., :-1].sum().backward()
    assert table.grad is not None and bool((table.grad[:-1].abs().sum(1) > 0).all()), (
        "of tokens that x_t does not show too"
    )
    fresh = DIT(dit_config(tied=True), num_states=STATES)(tokens(2), half(2)).log_probs()[..., :-1]
    assert float((fresh.exp() * (STATES - 1) - 1).detach().abs().max()) < 0.5, "all tokens are about as likely at first"


def test_lambda_is_refused() -> None:
    with pytest.raises(ValueError, match="lam must be None for a network without λ, got Tensor"):
        dit()(tokens(2), half(2), torch.zeros(2, 1, 1))


def test_output_head_carries_the_dtype_of_its_products() -> None:
    network = dit()
    network.matmul_dtype = torch.bfloat16
    head: Any = network.output_head()
    assert dataclasses.replace(head, matmul_dtype=None).weight is network.output_layer.linear.weight
    assert head.matmul_dtype is torch.bfloat16


@pytest.mark.parametrize("conditioned", [False, True])
def test_stages_taken_apart_are_the_whole(*, conditioned: bool) -> None:
    """A driver that stops, repeats each sequence and goes on leaves the prediction as it is, shared rows or not."""
    network = dit(time_conditioning=conditioned)
    x_t, t = tokens(2).repeat(2, 1), torch.tensor([0.3, 0.8, 0.3, 0.5])
    expected = network(x_t, t).features.expand(-1, 3, -1, -1)

    def by_blocks(stages: DitStages) -> Rows:
        stages.run(1)
        stages.repeat(3)
        return Rows(stages.features().unflatten(0, (-1, 3)), stages.output_head)

    def by_the_last_mlp(stages: DitStages) -> Rows:
        assert stages.before_last_mlp().shape == (4, LENGTH, 16)
        return Rows(stages.last_mlp(torch.zeros(1, 3, 1, 64).double()), stages.output_head)

    for drive in (by_blocks, by_the_last_mlp):
        torch.testing.assert_close(network(x_t, t, drive=drive).features, expected, rtol=1e-9, atol=1e-9)
        with torch.no_grad():
            shared = network(x_t, t, drive=drive, share=True).features
        torch.testing.assert_close(shared, expected, rtol=1e-9, atol=1e-9)


def test_equal_sequences_share_a_row_where_no_gradient_is_recorded() -> None:
    network, rows = dit(), []
    for block in network.blocks:
        block.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))

    def drive(stages: DitStages) -> Rows:
        stages.run(2)
        stages.repeat(1)
        return Rows(stages.features()[:, None], stages.output_head)

    x_t = tokens(2).repeat(4, 1)
    for share, expected in ((True, [2, 2, 8]), (False, [8, 8, 8])):
        rows.clear()
        with torch.no_grad():
            network(x_t, half(8), drive=drive, share=share)
        assert rows == expected
    rows.clear()
    network(x_t, half(8), drive=drive, share=True)
    assert rows == [8, 8, 8] and BLOCKS == 3  # with a gradient each row keeps its own


def test_distinct_pairs_of_sequence_and_noise() -> None:
    x_t, sigma = torch.tensor([[1, 2], [1, 2], [1, 2], [0, 2]]), torch.tensor([0.5, 0.5, 0.1, 0.5])
    x_UD, level_U, row_B = distinct(x_t, sigma)
    assert len(x_UD) == 3 and torch.equal(x_UD[row_B], x_t) and torch.equal(level_U[row_B], sigma)
    x_UD, level_U, row_B = distinct(x_t, sigma[:1])
    assert len(x_UD) == 2 and len(level_U) == 1 and torch.equal(x_UD[row_B], x_t)


def test_recomputed_activations_give_the_same_gradients() -> None:
    grads = []
    for recompute in (False, True):
        network = dit()
        network.activation_checkpointing = recompute
        network(tokens(2), half(2)).log_probs()[..., :-1].square().mean().backward()
        grads.append({name: p.grad for name, p in network.named_parameters()})
    assert all(grad is not None for grad in grads[0].values())
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-12, atol=1e-12)


def test_casts_leave_the_frequencies_of_rotary_positions_exact() -> None:
    network = dit().float()
    exact = network.rotary_emb.inv_freq.clone()
    assert torch.equal(network.to(torch.bfloat16).rotary_emb.inv_freq, exact)
    block: Any = network.blocks[0]
    assert block.norm1.weight.dtype == torch.bfloat16


def norm_inputs(rows: int) -> list[Tensor]:
    rng = torch.Generator().manual_seed(rows)
    shapes = ((3, 4, 6), (rows, 1, 6), (rows, 1, 6))
    return [torch.randn(s, generator=rng, dtype=torch.float64).requires_grad_() for s in shapes]


@pytest.mark.parametrize("rows", [1, 3])
def test_it_is_layer_norm_then_modulation(rows: int) -> None:
    x, shift, scale = norm_inputs(rows)
    expected = F.layer_norm(x, (6,)) * scale + shift
    torch.testing.assert_close(modulated_norm(x, shift, scale), expected)
    assert torch.autograd.gradcheck(modulated_norm, (x, shift, scale))


def test_narrow_input_is_computed_wide() -> None:
    x, shift, scale = (v.detach().float() for v in norm_inputs(1))
    narrow = (100 + x).to(torch.bfloat16)
    found = modulated_norm(narrow, shift, scale)
    expected = F.layer_norm(narrow.float(), (6,)) * scale + shift
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected.to(torch.bfloat16))


@pytest.mark.parametrize(
    "settings, complaint",
    [
        ({"impossible": 3}, "impossible must be null where process=masked, got 3"),
        ({"modulation": False, "time_conditioning": True}, "time_conditioning must be false where modulation=false"),
        ({"process": "uniform"}, "time_conditioning must be true where process=uniform"),
        (
            {"process": "uniform", "time_conditioning": True, "output": "scores"},
            "output must be logits where process=u",
        ),
    ],
)
def test_settings_that_contradict_each_other(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        dit_config(**settings)


def test_without_modulation_there_is_no_time_and_norms_may_have_biases() -> None:
    network = dit(modulation=False, norm_bias=True)
    names = dict(network.named_parameters())
    assert not any("adaLN" in name or "sigma_map" in name for name in names)
    assert sum(name.endswith((".norm1.bias", ".norm2.bias", ".norm_final.bias")) for name in names) == 2 * BLOCKS + 1
    early, late = (network(tokens(2), torch.full((2,), t)).features for t in (0.1, 0.9))
    assert torch.equal(early, late)
    with torch.no_grad():
        names["blocks.0.norm1.bias"].zero_()
    assert (network(tokens(2), half(2)).features - early).abs().max() > 1e-3


def uniform_dit(**settings: Any) -> DIT:
    return dit(process="uniform", time_conditioning=True, **settings)


def test_of_uniform_noise_no_state_is_impossible_and_x_t_speaks_for_itself() -> None:
    """The ratio of p(x_0 | x_t) to what the other positions say is q(x_t | x_0), up to a factor."""
    network, x_t, t = uniform_dit(), tokens(3), torch.tensor([0.1, 0.5, 1.0])
    prediction = network(x_t, t)
    log_p = prediction.log_probs()[:, 0]
    assert network.mask_id is None and bool(log_p.isfinite().all())
    head: Any = prediction.output_head
    rest = head.inner.logits(prediction.features[..., :-2].flatten(0, 2), torch.arange(LENGTH).repeat(3)).view(
        log_p.shape
    )
    alpha = 1 - 0.999 * t.double()[:, None, None]
    q = alpha * F.one_hot(x_t, STATES) + (1 - alpha) / STATES
    torch.testing.assert_close(log_p, (rest.softmax(-1) * q).log().log_softmax(-1), atol=1e-6, rtol=1e-6)


def test_the_head_of_uniform_noise_in_closed_form_is_that_by_autograd() -> None:
    network, position = uniform_dit(), torch.arange(LENGTH)
    prediction = network(tokens(1), half(1))
    head: Any = prediction.output_head
    features = prediction.features[0, 0].detach()
    rng = torch.Generator().manual_seed(0)
    grad = torch.randn(LENGTH, STATES, generator=rng, dtype=torch.float64)
    expected_sums = [torch.zeros_like(parameter) for parameter in head.parameters]
    expected = OutputHead.vjp(head, features, position, grad, expected_sums)
    sums = [torch.zeros_like(parameter) for parameter in head.parameters]
    torch.testing.assert_close(head.vjp(features, position, grad.clone(), sums), expected)
    torch.testing.assert_close(sums, expected_sums)
    targets = torch.randint(STATES, (LENGTH, 4), generator=rng)
    torch.testing.assert_close(
        head.target_logits(features, position, targets), head.logits(features, position).gather(1, targets)
    )


def test_states_beyond_a_narrow_dtype_are_told_apart() -> None:
    """Of 5,000 states bfloat16 tells some 300 apart: what the head reads of x_t is kept wide."""
    network = fill(DIT(dit_config(process="uniform", time_conditioning=True), num_states=5000)).to(torch.bfloat16)
    x_t = torch.tensor([[4097, 4099, 4999]])
    with torch.no_grad():
        prediction = network(x_t, torch.tensor([0.01]))
        assert prediction.features.dtype == torch.float32
        assert torch.equal(prediction.log_probs()[0, 0].argmax(-1), x_t[0])


@pytest.mark.parametrize("share", [False, True])
def test_shared_rows_keep_what_each_x_t_says(*, share: bool) -> None:
    network, x_t, t = uniform_dit(), tokens(2).repeat(2, 1), torch.tensor([0.3, 0.8, 0.3, 0.5])
    with torch.no_grad():
        found = network(x_t, t, share=share).log_probs()
        alone = torch.cat([network(x_t[i : i + 1], t[i : i + 1]).log_probs() for i in range(4)])
    torch.testing.assert_close(found, alone)


def test_a_state_that_no_x_0_has() -> None:
    p = uniform_dit(impossible=4)(tokens(2), half(2)).log_probs().exp()
    assert bool((p[..., 4] == 0).all()) and bool((p[..., STATES - 1] > 0).all())
    with pytest.raises(ValueError, match="impossible must be one of the 11 states, or null, got 11"):
        uniform_dit(impossible=11)

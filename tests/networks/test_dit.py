import dataclasses
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from di4c_lm.mixtures.latent import is_latent
from di4c_lm.mixtures.settings import LatentConfig
from di4c_lm.networks.dit import DIT, modulated_norm
from tests.networks.nets import BLOCKS, LENGTH, STATES, half, net, scalars, tokens

Path = Literal["token", "adaln"]
PATHS: list[Path] = ["token", "adaln"]
WAYS = [(path, k) for path in PATHS for k in range(BLOCKS)]


@pytest.mark.parametrize("path, inject_at", WAYS)
def test_a_student_without_its_lambda_is_the_teacher(path: Path, inject_at: int) -> None:
    teacher, student = net(), net(LatentConfig(path=path, inject_at=inject_at))
    found = student(tokens(2), half(2))
    assert found.features.shape == (2, 1, LENGTH, 16)
    torch.testing.assert_close(found.log_probs(), teacher(tokens(2), half(2)).log_probs(), rtol=0, atol=0)


@pytest.mark.parametrize("inject_at", range(BLOCKS))
def test_a_modulation_of_zero_is_the_teacher(inject_at: int) -> None:
    teacher, student = net(), net(LatentConfig(path="adaln", inject_at=inject_at))
    for weight in student.latent_modulation.parameters():
        weight.data.zero_()
    found = student(tokens(2), half(2), scalars(2, 3)).log_probs()
    expected = teacher(tokens(2), half(2)).log_probs().expand(-1, 3, -1, -1)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("path, inject_at", WAYS)
def test_lambda_reaches_every_position(path: Path, inject_at: int) -> None:
    log_p = net(LatentConfig(path=path, inject_at=inject_at))(tokens(1), half(1), scalars(1, 2)).log_probs()
    spread_D = (log_p[0, 0] - log_p[0, 1]).abs()[:, :-1].amax(1)
    assert bool((spread_D > 1e-6).all())


@pytest.mark.parametrize("time_conditioning", [False, True])
@pytest.mark.parametrize("path, inject_at", WAYS)
def test_a_shared_trunk_is_as_many_rows_run_apart(path: Path, inject_at: int, *, time_conditioning: bool) -> None:
    network = net(LatentConfig(path=path, inject_at=inject_at), time_conditioning=time_conditioning)
    x_t, lam, t = tokens(3), scalars(3, 4), torch.tensor([0.2, 0.9, 0.5])
    x_t[2] = x_t[0]  # equal sequences at unequal times, which the trunk may share only where it does not see the time
    together = network(x_t, t, lam)
    apart = [
        network(x_t[b : b + 1], t[b : b + 1], lam[b : b + 1, j : j + 1]).features for b in range(3) for j in range(4)
    ]
    expected = torch.cat(apart).view_as(together.features)
    torch.testing.assert_close(together.features, expected, rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        torch.testing.assert_close(network(x_t, t, lam).features, expected, rtol=1e-9, atol=1e-9)


def test_equal_sequences_run_the_trunk_once() -> None:
    network = net(LatentConfig(path="adaln", inject_at=2))
    rows: list[int] = []
    for block in network.blocks:
        block.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    x_t = tokens(2).repeat(4, 1)
    with torch.no_grad():
        network(x_t, half(8), scalars(8, 1))
    assert rows == [2, 2, 8]
    rows.clear()
    network(x_t, half(8), scalars(8, 1))
    assert rows == [8, 8, 8]  # with a gradient each row keeps its own


@pytest.mark.parametrize("path, inject_at", WAYS)
def test_checkpointed_activations_equal_plain_ones(path: Path, inject_at: int) -> None:
    gradients = []
    for checkpointing in (False, True):
        network = net(LatentConfig(path=path, inject_at=inject_at))
        network.activation_checkpointing = checkpointing
        log_p = network(tokens(2), half(2), scalars(2, 3)).log_probs()
        log_p[..., :-1].square().mean().backward()
        gradients.append({name: p.grad for name, p in network.named_parameters()})
    unused = {name for name, gradient in gradients[0].items() if gradient is None}
    assert unused == {name for name, gradient in gradients[1].items() if gradient is None} == set()
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-12, atol=1e-12)


def test_a_codebook_is_enumerated_and_read() -> None:
    latent = LatentConfig(law="codebook", codebook_size=4, path="adaln", inject_at=1)
    network = net(latent)
    codes = network.sample_latents(2, 4, lambda shape: torch.rand(shape, dtype=torch.float64))
    assert codes is not None and codes[..., 0].tolist() == [[0, 1, 2, 3]] * 2
    log_p = network(tokens(2), half(2), codes).log_probs()
    reversed_p = network(tokens(2), half(2), codes.flip(1)).log_probs()
    torch.testing.assert_close(log_p.flip(1), reversed_p)
    assert (log_p[:, 0] - log_p[:, 1]).abs().max() > 1e-3


def test_time_conditioning() -> None:
    early, late = torch.tensor([0.1, 0.1]), torch.tensor([0.9, 0.9])
    for conditioned in (False, True):
        network = net(time_conditioning=conditioned)
        features = [network(tokens(2), t).features for t in (early, late)]
        assert torch.equal(*features) is not conditioned
    network = net(time_conditioning=True)
    mixed = network(tokens(2), torch.tensor([0.1, 0.9])).features
    torch.testing.assert_close(mixed[0], network(tokens(2), early).features[0])
    torch.testing.assert_close(mixed[1], network(tokens(2), late).features[1])


def test_mask_is_never_predicted() -> None:
    network = net()
    assert network.mask_id == STATES - 1
    p = network(tokens(2), half(2)).log_probs().exp()
    assert bool((p[..., STATES - 1] == 0).all())
    torch.testing.assert_close(p.sum(-1), torch.ones(2, 1, LENGTH).double())


def test_positions_matter_but_not_the_batch() -> None:
    network, x_t = net(), tokens(3)
    features = network(x_t, half(3)).features
    torch.testing.assert_close(network(x_t[1:2], half(1)).features, features[1:2])
    rolled = network(x_t.roll(1, 1), half(3)).features.roll(-1, 2)
    assert (rolled - features).abs().max() > 1e-3


def test_gradients_are_right() -> None:
    """Double-checked by differences, through norm, modulation, attention and the λ path."""
    network = net(LatentConfig(path="adaln", inject_at=1), hidden_size=4, num_heads=1, cond_dim=2)
    parameters = dict(network.named_parameters())
    names = [
        "blocks.0.norm1.weight",
        "blocks.1.adaLN_modulation.bias",
        "latent_modulation.1.weight",
        "blocks.2.attn_qkv.weight",
        "output_layer.norm_final.weight",
    ]

    def loss(*values: torch.Tensor) -> torch.Tensor:
        swapped = {**parameters, **dict(zip(names, values, strict=True))}
        arguments = (tokens(1), half(1), scalars(1, 2))
        return torch.func.functional_call(network, swapped, arguments).features.sin().sum()

    assert torch.autograd.gradcheck(loss, [parameters[name] for name in names], fast_mode=True)


def test_a_fresh_network_predicts_nothing_and_its_lambda_path_is_small() -> None:
    config = net().config
    fresh = DIT(config, num_states=STATES, latent=LatentConfig(path="adaln", inject_at=0))
    p = fresh(tokens(2), half(2), scalars(2, 2)).log_probs().exp()
    torch.testing.assert_close(p[..., :-1], torch.full((2, 2, LENGTH, STATES - 1), 1 / (STATES - 1)))
    assert all(is_latent(name) == ("latent" in name) for name, _ in fresh.named_parameters())


@pytest.mark.parametrize("shape", [(2, 3), (3, 1, 1), (2, 0, 1)])
def test_lambda_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"lam: expected shape \(B=2, L >= 1, K\)") as error:
        net(LatentConfig())(tokens(2), half(2), torch.zeros(shape))
    assert str(tuple(shape)) in str(error.value)


def test_lambda_for_a_teacher_is_refused() -> None:
    with pytest.raises(ValueError, match="this network has no λ"):
        net()(tokens(2), half(2), scalars(2, 1))


def test_injection_past_the_last_block_is_refused() -> None:
    with pytest.raises(ValueError, match="inject_at=3 must be below model.num_blocks=3"):
        DIT(net().config, num_states=STATES, latent=LatentConfig(inject_at=3))


def test_bfloat16_stays_near() -> None:
    exact = net(LatentConfig(path="adaln", inject_at=1))
    narrow = net(LatentConfig(path="adaln", inject_at=1)).to(torch.bfloat16)
    found = narrow(tokens(2), half(2), scalars(2, 2))
    assert found.features.dtype == torch.bfloat16
    assert found.log_probs().dtype == torch.float32
    expected = exact(tokens(2), half(2), scalars(2, 2)).features
    assert (found.features.double() - expected).norm() < 0.05 * expected.norm()


def test_readout_carries_the_dtype_of_its_products() -> None:
    network = net()
    network.matmul_dtype = torch.bfloat16
    assert dataclasses.replace(network.output_head(), matmul_dtype=None).weight_SH is network.output_layer.linear.weight
    assert network.output_head().matmul_dtype is torch.bfloat16


def test_a_negative_block_counts_from_the_end() -> None:
    last = net(LatentConfig(path="adaln", inject_at=-1))
    assert last.inject_at == BLOCKS - 1
    assert [name for name in last.latent_modulation] == [str(BLOCKS - 1)]


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

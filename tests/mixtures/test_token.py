"""λ as a token, by adaLN, or as shifts of a U-Net: its distributions, its embedding, and where it enters."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from di4c_lm.mixtures.adaln import AdaLNSettings
from di4c_lm.mixtures.base import Latents
from di4c_lm.mixtures.token import TokenSettings
from di4c_lm.networks.base import sinusoid
from di4c_lm.networks.unet import ResBlock
from di4c_lm.processes.denoiser import NO_CLASS, Denoiser
from tests.mixtures.helpers import gradients, on_dit, on_maskgit, on_unet, sampled, scalars
from tests.networks.helpers import (
    BLOCKS,
    CODE_LENGTH,
    CODES,
    LENGTH,
    LEVELS,
    codes,
    dit,
    half,
    images,
    maskgit,
    tokens,
    unet,
)

B, L = 500, 16
WAYS = [kind(inject_at=k) for kind in (TokenSettings, AdaLNSettings) for k in range(BLOCKS)]
ON_CODES = [
    TokenSettings(),
    TokenSettings(distribution="codebook", inject_at=2, codebook_size=4),
    AdaLNSettings(distribution="gaussian", inject_at=-1, dim=3, init_scale=0.5),
    AdaLNSettings(distribution="stratified", init_scale=0.5),
]


def draws(settings: TokenSettings, num_lambdas: int = L) -> Tensor:
    return sampled(on_dit(settings), B, num_lambdas, seed=0).value


def is_uniform(u: Tensor) -> bool:
    """Kolmogorov-Smirnov at once in 8 000 times."""
    steps = (torch.arange(len(u)) + 0.5) / len(u)
    return float((u.sort().values - steps).abs().max()) * math.sqrt(len(u)) < 2.2


def test_uniform() -> None:
    lam = draws(TokenSettings())
    assert lam.shape == (B, L, 1) and lam.dtype == torch.float32
    assert is_uniform(lam.flatten())
    correlation = torch.corrcoef(lam[..., 0].T).fill_diagonal_(0)
    assert correlation.abs().max() < 5 / math.sqrt(B)


def test_stratified_samples_fall_one_a_stratum() -> None:
    lam = draws(TokenSettings(distribution="stratified"))
    assert torch.equal((lam[..., 0].double() * L).floor().long(), torch.arange(L).expand(B, L))
    assert is_uniform((lam[..., 0].double() * L).frac().flatten())
    # The mean of L stratified samples varies by 1 / (12 L^3), that of independent ones by 1 / (12 L).
    assert float(lam.mean(1).var()) == pytest.approx(1 / (12 * L**3), rel=0.35)


@pytest.mark.parametrize("dim", [1, 3])
def test_gaussian_moments(dim: int) -> None:
    lam = draws(TokenSettings(distribution="gaussian", dim=dim))
    assert lam.shape == (B, L, dim)
    flat = lam.flatten(0, 1)
    assert flat.mean(0).abs().max() < 5 / math.sqrt(len(flat))
    covariance = flat.T @ flat / len(flat)
    assert (covariance - torch.eye(dim)).abs().max() < 5 * math.sqrt(2 / len(flat))


def test_a_codebook_is_enumerated_or_sampled_evenly() -> None:
    settings = TokenSettings(distribution="codebook", codebook_size=L)
    assert torch.equal(draws(settings)[..., 0], torch.arange(L).expand(B, L))
    found = draws(settings, num_lambdas=5)
    assert found.shape == (B, 5, 1)
    counts = found.flatten().bincount(minlength=L)
    expected = B * 5 / L
    assert float(((counts - expected) ** 2 / expected).sum()) < 50  # 15 degrees of freedom
    mixture = on_dit(settings)
    assert mixture.num_components(100) == L and mixture.num_components(5) == 5 == mixture.num_calls(5)
    assert on_dit(TokenSettings()).num_components(100) == 100


def test_more_samples_than_codes_or_none_are_refused() -> None:
    settings = TokenSettings(distribution="codebook", codebook_size=4)
    with pytest.raises(ValueError, match="num_lambdas must be at most mixture.codebook_size = 4, got 5"):
        draws(settings, num_lambdas=5)
    with pytest.raises(ValueError, match="objective.num_lambdas must be at most mixture.codebook_size = 4, got 5"):
        settings.check_num_lambdas(5)
    with pytest.raises(ValueError, match="num_lambdas must be at least 1, got 0"):
        draws(TokenSettings(), num_lambdas=0)
    assert TokenSettings(distribution="codebook", codebook_size=0).sized(7).codebook_size == 7


def test_keys_without_effect_are_known() -> None:
    assert set(TokenSettings().unused()) == {"dim", "codebook_size", "init_scale"}
    assert set(AdaLNSettings(distribution="gaussian").unused()) == {"codebook_size"}
    assert set(TokenSettings(distribution="codebook").unused()) == {"dim"}


def test_sinusoid() -> None:
    """sin first, and frequencies 10000^(-k / (half - 1)): from 1 down to 1e-4."""
    found = sinusoid(torch.tensor([0.7]), dim=8)[0]
    frequencies = [10_000 ** (-k / 3) for k in range(4)]
    expected = [math.sin(0.7 * f) for f in frequencies] + [math.cos(0.7 * f) for f in frequencies]
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


def test_what_the_projection_reads() -> None:
    lam = torch.randn(4, 1, 3, generator=torch.Generator().manual_seed(0)).double()
    gaussian, scalar = on_dit(TokenSettings(distribution="gaussian", dim=3)), on_dit(TokenSettings())
    torch.testing.assert_close(gaussian.embed(Latents(lam)), gaussian.latent_projection(lam[:, 0]))
    expected = scalar.latent_projection(sinusoid(1000 * lam[:, 0, 0]).double())
    torch.testing.assert_close(scalar.embed(Latents(lam[..., :1])), expected)


@pytest.mark.parametrize("settings", WAYS)
def test_without_lambda_the_student_is_the_teacher(settings: TokenSettings) -> None:
    found = on_dit(settings)(tokens(2), half(2))
    assert found.features.shape == (2, 1, LENGTH, 16)
    torch.testing.assert_close(found.log_probs(), dit()(tokens(2), half(2)).log_probs(), rtol=0, atol=0)


@pytest.mark.parametrize("kind", [TokenSettings, AdaLNSettings])
def test_lambda_enters_before_its_block_counted_from_either_end(kind: Any) -> None:
    for block in range(BLOCKS):
        here, from_the_end = on_dit(kind(inject_at=block)), on_dit(kind(inject_at=block - BLOCKS))
        assert here.inject_at == from_the_end.inject_at == block


@pytest.mark.parametrize("settings", WAYS)
def test_lambda_reaches_every_position(settings: TokenSettings) -> None:
    log_p = on_dit(settings)(tokens(1), half(1), scalars(1, 2)).log_probs()
    spread_D = (log_p[0, 0] - log_p[0, 1]).abs()[:, :-1].amax(1)
    assert bool((spread_D > 1e-6).all())


@pytest.mark.parametrize("time_conditioning", [False, True])
@pytest.mark.parametrize("settings", WAYS)
def test_shared_rows_are_as_many_rows_run_apart(settings: TokenSettings, *, time_conditioning: bool) -> None:
    mixture = on_dit(settings, time_conditioning=time_conditioning)
    x_t, lam, t = tokens(3), scalars(3, 4), torch.tensor([0.2, 0.9, 0.5])
    x_t[2] = x_t[0]  # equal sequences at unequal times, which share rows only where the network does not see the time
    together = mixture(x_t, t, lam)
    apart = [
        mixture(x_t[b : b + 1], t[b : b + 1], Latents(lam.value[b : b + 1, j : j + 1])).features
        for b in range(3)
        for j in range(4)
    ]
    expected = torch.cat(apart).view_as(together.features)
    torch.testing.assert_close(together.features, expected, rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        torch.testing.assert_close(mixture(x_t, t, lam).features, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("settings", WAYS)
def test_recomputed_activations_give_the_same_gradients(settings: TokenSettings) -> None:
    found = []
    for recompute in (False, True):
        mixture = on_dit(settings)
        mixture.activation_checkpointing = recompute
        log_p = mixture(tokens(2), half(2), scalars(2, 3)).log_probs()
        log_p[..., :-1].square().mean().backward()
        found.append(gradients(mixture))
    assert all(grad is not None for grad in found[0].values())
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(2, 3), (3, 1, 1), (2, 0, 1)])
def test_lambda_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    for mixture, x_t in ((on_dit(TokenSettings()), tokens(2)), (on_unet(TokenSettings()), images(2))):
        with pytest.raises(ValueError, match=r"lam must have shape \(B=2, L >= 1, K\)") as error:
            mixture(x_t, half(2), Latents(torch.zeros(shape)))
        assert str(tuple(shape)) in str(error.value)


@pytest.mark.parametrize("settings", ON_CODES)
def test_on_image_codes_a_prediction_is_a_distribution(settings: TokenSettings) -> None:
    mixture, x_t = on_maskgit(settings), codes(5)
    assert isinstance(mixture, Denoiser)
    p = mixture(x_t, half(5), sampled(mixture, 5, 4), torch.tensor([0, 1, 2, NO_CLASS, 0])).log_probs().exp()
    assert p.shape == (5, 4, CODE_LENGTH, CODES + 1)
    torch.testing.assert_close(p.sum(-1), torch.ones_like(p[..., 0]))
    assert bool((p[..., CODES] == 0).all()) and not torch.allclose(p[:, 0], p[:, 1])
    labels = torch.tensor([2, NO_CLASS])
    ours, theirs = (one(codes(2), half(2), None, labels).log_probs() for one in (mixture, maskgit()))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("settings", ON_CODES)
def test_on_image_codes_rows_of_lambda_are_apart(settings: TokenSettings) -> None:
    mixture, x_t, labels = on_maskgit(settings), codes(2).repeat(2, 1), torch.tensor([0, 1, 0, 2])
    lam = sampled(mixture, 4, 3)
    recorded = mixture(x_t, half(4), lam, labels).features
    with torch.no_grad():  # equal sequences of one class share the blocks before λ
        together = mixture(x_t, half(4), lam, labels).features
        alone = mixture(x_t[3:], half(1), Latents(lam.value[3:, 1:2]), labels[3:]).features
    torch.testing.assert_close(together, recorded)
    torch.testing.assert_close(alone[0, 0], recorded[3, 1])


@pytest.mark.parametrize("settings", ON_CODES)
def test_on_image_codes_gradients_reach_every_parameter(settings: TokenSettings) -> None:
    found = []
    for recompute in (False, True):
        mixture = on_maskgit(settings).train()
        mixture.activation_checkpointing = recompute
        prediction = mixture(codes(2), half(2), sampled(mixture, 2, 4), torch.tensor([0, 2]))
        prediction.log_probs()[..., :CODES].square().mean().backward()
        found.append(gradients(mixture))
    assert all(grad is not None and bool(grad.any()) for grad in found[0].values())
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("distribution", ["uniform", "stratified", "codebook"])
def test_on_pixels_each_row_is_a_prediction_of_its_own(distribution: Any) -> None:
    mixture = on_unet(TokenSettings(distribution=distribution, codebook_size=5))
    x_t, t, lam = images(2), torch.tensor([0.2, 0.7]), sampled(mixture, 2, 3)
    whole = mixture(x_t, t, lam).log_probs()
    assert whole.shape == (2, 3, 24, LEVELS)
    torch.testing.assert_close(whole.exp().sum(-1), torch.ones(2, 3, 24).double())
    for row in range(2):
        for draw in range(3):
            one = Latents(lam.value[row : row + 1, draw : draw + 1])
            alone = mixture(x_t[row : row + 1], t[row : row + 1], one).log_probs()
            torch.testing.assert_close(alone[0, 0], whole[row, draw])
    assert not torch.allclose(whole[:, 0], whole[:, 1]), "λ matters"
    assert not torch.allclose(whole, mixture(x_t, t.flip(0), lam).log_probs()), "the time matters"


@pytest.mark.parametrize("settings", WAYS)
def test_the_last_block_runs_at_the_positions_asked_for(settings: TokenSettings) -> None:
    """Features there, and gradients of them, are as ever; rows that are shared answer for all that ask; the block sees fewer places."""
    network, x_t = on_dit(settings), tokens(2).repeat(2, 1)
    at, lam = torch.zeros(4, LENGTH, dtype=torch.bool), sampled(network, 4, 3)
    at[0, :3], at[1, 5], at[3, 1:3] = True, True, True
    found = []
    for asked in (None, at):
        network.zero_grad()
        features = network(x_t, half(4), lam, at=asked).features.transpose(1, 2)[at]
        features.square().sum().backward()
        found.append((features.detach(), gradients(network)))
    torch.testing.assert_close(*found)
    places: list[int] = []
    network.network.blocks[-1].mlp.register_forward_hook(lambda _, inputs, __: places.append(inputs[0].shape[1]))
    with torch.no_grad():
        shared = network(x_t, half(4), lam, at=at).features.transpose(1, 2)[at]
        alone = [network.network(x_t, half(4), at=one, share=True).features[:, 0][at] for one in (None, at)]
    torch.testing.assert_close(shared, found[0][0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(*alone, rtol=1e-9, atol=1e-9)
    assert places and min(places) < LENGTH


@pytest.mark.parametrize("inject_at", [0, 2, -1])
def test_on_pixels_what_comes_before_lambda_runs_once(inject_at: int) -> None:
    """Of a late λ each row is what it is by itself, and blocks before it are not shifted."""
    mixture, rows = on_unet(TokenSettings(inject_at=inject_at)), []
    blocks = [module for module in mixture.network.modules() if isinstance(module, ResBlock)]
    x_t, t, lam = images(2), torch.tensor([0.2, 0.7]), sampled(mixture, 2, 3)
    handles = [block.conv1.register_forward_hook(lambda *_: rows.append(len(_[2]))) for block in blocks]
    whole = mixture(x_t, t, lam).features
    assert len(rows) == mixture.config.num_blocks == len(blocks)
    first = inject_at % len(rows)
    assert rows == [2] * first + [6] * (len(rows) - first)
    for handle in handles:
        handle.remove()
    apart = mixture(x_t.repeat_interleave(3, 0), t.repeat_interleave(3), lam.one_a_row()).features
    torch.testing.assert_close(apart.unflatten(0, (2, 3))[:, :, 0], whole)
    assert not torch.allclose(whole[:, 0], whole[:, 1])
    whole.square().sum().backward()
    # by the order in which they run
    shifted = {name for name, p in mixture.named_parameters() if ".dense1.weight" in name and p.grad is not None}
    assert len(shifted) == len(rows) - first


@pytest.mark.parametrize("freeze_backbone", [False, True])
def test_on_pixels_fresh_shifts_are_silent_and_without_lambda_left_out(*, freeze_backbone: bool) -> None:
    teacher, x_t, t = unet(), images(2), torch.tensor([0.2, 0.7])
    student = TokenSettings(freeze_backbone=freeze_backbone).over(teacher, torch.Generator().manual_seed(0)).eval()
    expected = teacher(x_t, t).features
    torch.testing.assert_close(student(x_t, t, scalars(2, 3)).features, expected.expand(-1, 3, -1, -1))
    of_teacher = set(teacher.state_dict())
    for name, parameter in student.named_parameters():
        is_new = name.removeprefix("network.") not in of_teacher
        assert student.learns_apart(name) == is_new
        assert parameter.requires_grad == (is_new or not freeze_backbone)
        if is_new:
            torch.nn.init.normal_(parameter, std=0.3)
    torch.testing.assert_close(student(x_t, t).features, expected)
    assert not torch.allclose(student(x_t, t, scalars(2, 3)).features, expected)


def test_on_pixels_recomputed_activations_change_nothing() -> None:
    found = []
    for recompute in (False, True):
        mixture = on_unet(TokenSettings())
        mixture.activation_checkpointing = recompute
        mixture(images(2), torch.tensor([0.2, 0.7]), scalars(2, 3)).features.square().sum().backward()
        found.append(gradients(mixture))
    assert all(grad is not None for grad in found[0].values())
    torch.testing.assert_close(*found)


@pytest.mark.parametrize(
    "make, settings, message",
    [
        (on_dit, TokenSettings(inject_at=3), "mixture.inject_at must be a block below model.num_blocks = 3, got 3"),
        (on_maskgit, AdaLNSettings(inject_at=-4), "mixture.inject_at must be a block below model.num_blocks = 3"),
        (on_dit, TokenSettings(distribution="codebook", codebook_size=0), "mixture.codebook_size must be at least 1"),
        (on_unet, AdaLNSettings(), "mixture must be token, codes, class_chain or sequential for a U-Net, got 'adaln'"),
        (on_unet, TokenSettings(inject_at=99), "mixture.inject_at must be a block below model.num_blocks"),
        (
            on_unet,
            TokenSettings(distribution="gaussian"),
            "mixture.distribution must be uniform, stratified or codebook",
        ),
    ],
)
def test_settings_that_do_not_go_with_the_network_are_refused(make: Any, settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(settings)

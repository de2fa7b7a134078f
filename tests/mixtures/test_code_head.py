import pytest
import torch

from di4c_lm.checkpoints.student import student_from_teacher
from di4c_lm.mixtures.code_head import MixtureHead
from di4c_lm.mixtures.settings import LatentConfig
from tests.networks.nets import LENGTH, half, net, tokens


def latent(window: int = 2, **settings: object) -> LatentConfig:
    return LatentConfig(**{"law": "codebook", "path": "head", "codebook_size": 3, "window": window, **settings})  # pyright: ignore


def every_code(network: torch.nn.Module, num_batch: int) -> torch.Tensor:
    return network.sample_latents(num_batch, 0, lambda shape: torch.zeros(shape, dtype=torch.float64))  # pyright: ignore


@pytest.mark.parametrize("window", [0, 1, 2, 4])
@pytest.mark.parametrize("settings", [{}, {"tie": "none"}, {"weights": "uniform"}])
def test_a_draw_says_of_each_position_what_its_window_s_code_says(window: int, settings: dict[str, str]) -> None:
    network, x_t = net(latent(window, **settings)), tokens(2)
    codes = network(x_t, half(2), every_code(network, 2))
    assert codes.chain is not None and codes.features.shape[:3] == (2, 3, LENGTH)
    num_windows = codes.chain.log_step.shape[1]
    assert num_windows == (1 if window == 0 else -(-LENGTH // window))
    torch.testing.assert_close(codes.chain.log_step.exp().sum(3), torch.ones(2, num_windows, 3).double())
    lam = torch.rand(2, 7, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    drawn = network(x_t, half(2), lam)
    assert drawn.chain is None
    same = (drawn.features[:, :, None] == codes.features[:, None]).all(-1) | torch.isclose(
        drawn.features[:, :, None], codes.features[:, None], rtol=1e-9, atol=1e-12
    ).all(-1)
    code_BND = same.double().argmax(2)
    assert bool(same.any(2).all())
    first = codes.chain.window_of(torch.arange(LENGTH)) * (window or LENGTH)
    assert torch.equal(code_BND, code_BND[:, :, first])


def test_draws_follow_the_chain() -> None:
    network, x_t = net(latent(3)), tokens(1)
    codes = network(x_t, half(1), every_code(network, 1))
    lam = torch.rand(1, 20_000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    drawn = network(x_t, half(1), lam)
    mean_LD = torch.einsum(
        "ld,ldh->dh",
        codes.chain.log_marginal[0, codes.chain.window_of(torch.arange(LENGTH))].exp().T,
        codes.features[0],
    )
    torch.testing.assert_close(drawn.features[0].mean(0), mean_LD, rtol=0, atol=0.06)


def test_without_modulation_the_student_is_its_teacher() -> None:
    teacher, x_t = net(), tokens(2)
    student = student_from_teacher(teacher, latent(), torch.Generator().manual_seed(0)).double().eval()
    head = student.latent_head
    assert isinstance(head, MixtureHead)
    head.modulation.weight.data.zero_()
    expected = teacher(x_t, half(2)).log_probs()
    found = student(x_t, half(2), every_code(student, 2)).log_probs()
    torch.testing.assert_close(found, expected.expand_as(found))
    torch.testing.assert_close(student(x_t, half(2)).log_probs(), expected)


def test_time_conditioning_and_shared_trunk_agree_with_the_plain_way() -> None:
    network = net(latent(), time_conditioning=True)
    x_t = tokens(2).repeat(2, 1)
    t = torch.tensor([0.3, 0.8]).repeat(2)
    lam = torch.rand(4, 2, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        shared = network(x_t, t, lam).features
    torch.testing.assert_close(shared, network(x_t, t, lam).features.detach())


def test_recomputed_activations_give_the_same_gradients() -> None:
    grads = []
    for recompute in (False, True):
        network = net(latent())
        network.activation_checkpointing = recompute
        codes = network(tokens(2), half(2), every_code(network, 2))
        (codes.features.square().sum() + codes.chain.log_step[..., 0].sum()).backward()
        grads.append({name: p.grad for name, p in network.named_parameters()})
    used = {name for name, grad in grads[0].items() if grad is not None}
    assert used == {name for name, _ in net(latent()).named_parameters() if not name.startswith("output_layer.linear")}
    for name in used:
        torch.testing.assert_close(grads[0][name], grads[1][name])


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"law": "uniform"}, "law must be codebook when path=head, got 'uniform'"),
        ({"window": -1}, "window must be at least 0, got -1"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        latent(**settings)  # pyright: ignore

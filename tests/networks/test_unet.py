"""The U-Net: λ, time, sizes, and what it refuses."""

import pytest
import torch
from torch import Tensor

from di4c_lm.mixtures.settings import LatentConfig
from di4c_lm.networks.unet import UNet, UnetConfig, is_latent, to_and_fro
from di4c_lm.processes.denoiser import Denoiser
from di4c_lm.processes.rng import KeyedRng

SMALL = UnetConfig(width=8, multipliers=(1, 2), res_blocks=1, dropout=0.0)
SHAPE, STATES = (4, 6, 1), 9


def network(latent: LatentConfig | None = None, model: UnetConfig = SMALL) -> UNet:
    """A small network whose every parameter matters."""
    return fill(UNet(model, shape=SHAPE, num_states=STATES, latent=latent))


def fill(net: UNet) -> UNet:
    """The network in float64, every weight of it drawn anew."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return net.double().eval()


def images(count: int) -> Tensor:
    return torch.randint(STATES, (count, 24), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("law", ["uniform", "stratified", "codebook"])
def test_each_row_of_a_mixture_is_a_prediction_of_its_own(law) -> None:
    net = network(LatentConfig(law=law, codebook_size=5))
    assert isinstance(net, Denoiser)
    x_t, t = images(2), torch.tensor([0.2, 0.7])
    lam = net.sample_latents(2, 3, KeyedRng(0, torch.arange(2)).uniform)
    assert lam is not None
    whole = net(x_t, t, lam).log_probs()
    assert whole.shape == (2, 3, 24, STATES)
    torch.testing.assert_close(whole.exp().sum(-1), torch.ones(2, 3, 24).double())
    for row in range(2):
        for draw in range(3):
            alone = net(x_t[row : row + 1], t[row : row + 1], lam[row : row + 1, draw : draw + 1]).log_probs()
            torch.testing.assert_close(alone[0, 0], whole[row, draw])
    assert not torch.allclose(whole[:, 0], whole[:, 1]), "λ matters"
    assert not torch.allclose(whole, net(x_t, t.flip(0), lam).log_probs()), "the time matters"


def test_a_fresh_path_is_silent_and_without_lambda_it_is_left_out() -> None:
    latent, teacher = LatentConfig(), network()
    student = UNet(SMALL, shape=SHAPE, num_states=STATES, latent=latent).double().eval()
    student.load_state_dict(teacher.state_dict(), strict=False)
    x_t, t = images(2), torch.tensor([0.2, 0.7])
    lam = torch.rand(2, 3, 1, generator=torch.Generator().manual_seed(0))
    expected = teacher(x_t, t).features
    torch.testing.assert_close(student(x_t, t, lam).features, expected.expand(-1, 3, -1, -1))
    moved = network(latent)
    moved.load_state_dict(teacher.state_dict(), strict=False)
    torch.testing.assert_close(moved(x_t, t).features, expected)
    own = {name for name, _ in student.named_parameters()} - {name for name, _ in teacher.named_parameters()}
    assert own == {name for name in own if is_latent(name)}
    assert not any(is_latent(name) for name, _ in teacher.named_parameters())


HEAD = LatentConfig(law="codebook", path="head", codebook_size=3, window=12)


def coded(colours: int = 1) -> UNet:
    return fill(UNet(SMALL, shape=(4, 6, colours), num_states=STATES, latent=HEAD))


@pytest.mark.parametrize("colours", [1, 3])
def test_a_string_of_codes_is_a_code_for_each_window_of_pixels(colours: int) -> None:
    net, t = coded(colours), torch.tensor([0.2, 0.7])
    x_t = torch.randint(STATES, (2, 24 * colours), generator=torch.Generator().manual_seed(1))
    rng = KeyedRng(0, torch.arange(2)).uniform
    codes = net(x_t, t, net.sample_latents(2, 0, rng))
    assert codes.chain is not None and codes.chain.log_step.shape == (2, 2, 3, 3)
    window_D = codes.chain.window_of(torch.arange(24 * colours))
    assert window_D.tolist() == ([0] * 12 + [1] * 12) * colours
    drawn = net(x_t, t, net.sample_latents(2, 40, rng))
    same_BNLD = torch.isclose(drawn.features[:, :, None], codes.features[:, None], rtol=1e-9, atol=1e-12).all(-1)
    assert bool(same_BNLD.any(2).all())
    code_BND = same_BNLD.double().argmax(2)
    first_D = window_D * 12
    assert torch.equal(code_BND, code_BND[..., first_D])
    assert len(code_BND.flatten(0, 1).unique(dim=0)) > 3


def test_without_codes_the_head_is_left_out_and_it_begins_near_its_teacher() -> None:
    teacher, x_t, t = network(), images(2), torch.tensor([0.2, 0.7])
    student = UNet(SMALL, shape=SHAPE, num_states=STATES, latent=HEAD).double().eval()
    student.load_state_dict(teacher.state_dict(), strict=False)
    torch.testing.assert_close(student(x_t, t).features, teacher(x_t, t).features)
    own = {name for name, _ in student.named_parameters()} - {name for name, _ in teacher.named_parameters()}
    assert own and all(map(is_latent, own))
    student.latent_output.output_head.weight.data.zero_()
    lam = student.sample_latents(2, 0, KeyedRng(0, torch.arange(2)).uniform)
    torch.testing.assert_close(student(x_t, t, lam).features, teacher(x_t, t).features.expand(-1, 3, -1, -1))


def test_gradients_reach_every_parameter_of_the_head() -> None:
    net = coded(3)
    x_t = torch.randint(STATES, (2, 72), generator=torch.Generator().manual_seed(1))
    codes = net(x_t, torch.tensor([0.2, 0.7]), net.sample_latents(2, 0, KeyedRng(0, torch.arange(2)).uniform))
    (codes.features.square().sum() + codes.chain.log_step[..., 0].sum()).backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in net.parameters())


CLASSED = LatentConfig(law="codebook", path="classes", codebook_size=4, relations=2, sweeps=50)


@pytest.mark.parametrize("colours", [1, 3])
def test_a_string_of_classes_keeps_the_law_of_each_pixel(colours: int) -> None:
    shape, t = (2, 4, colours), torch.tensor([0.2, 0.7])
    net = fill(UNet(SMALL, shape=shape, num_states=STATES, latent=CLASSED))
    x_t = torch.randint(STATES, (2, net.length), generator=torch.Generator().manual_seed(1))
    rng = KeyedRng(0, torch.arange(2)).uniform
    own = net(x_t, t).log_probs().exp()[:, 0]
    drawn = net(x_t, t, net.sample_latents(2, 4000, rng)).log_probs().exp()
    assert drawn.shape == (2, 4000, net.length, STATES) and not torch.allclose(drawn[:, 0], drawn[:, 1])
    torch.testing.assert_close(drawn.mean(1), own, rtol=0, atol=0.04)


def test_the_chain_goes_to_and_fro_and_through_the_colours() -> None:
    rows, columns, _ = shape = (3, 4, 2)
    place = to_and_fro(shape)
    assert sorted(place.tolist()) == list(range(24))
    colour, pixel = place // (rows * columns), place % (rows * columns)
    row, column = pixel // columns, pixel % columns
    assert colour.tolist() == [0, 1] * 12
    steps = (row[2::2] - row[:-2:2]).abs() + (column[2::2] - column[:-2:2]).abs()
    assert bool((steps == 1).all()), "each pixel beside the one before"
    with torch.device("meta"):
        meta = UNet(SMALL, shape=(2, 4, 2), num_states=STATES, latent=CLASSED)
    assert not list(meta.buffers())


def test_recomputed_activations_change_nothing() -> None:
    net, x_t, t = network(LatentConfig()), images(2), torch.tensor([0.2, 0.7])
    lam = torch.rand(2, 3, 1, generator=torch.Generator().manual_seed(0))
    grads = []
    for net.activation_checkpointing in (False, True):
        net.zero_grad()
        net(x_t, t, lam).features.square().sum().backward()
        grads.append({name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None})
    assert len(grads[0]) == len(list(net.parameters()))
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad)


def test_the_published_network_has_its_published_size() -> None:
    with torch.device("meta"):
        net = UNet(UnetConfig(), shape=(32, 32, 3))
    count = sum(parameter.numel() for parameter in net.parameters())
    assert round(count / 1e6, 1) == 35.7
    assert net.length == 3072


def test_what_it_refuses() -> None:
    with pytest.raises(
        ValueError, match=r"images of shape \(5, 6, 1\).*do not fit model\.multipliers=\(1, 2\).*multiples of 2"
    ):
        UNet(SMALL, shape=(5, 6, 1))
    with pytest.raises(ValueError, match=r"lambda\.path='adaln' .*impossible for a U-Net.*path=token"):
        network(LatentConfig(path="adaln"))
    with pytest.raises(ValueError, match=r"lambda\.law='gaussian' is impossible for a U-Net"):
        network(LatentConfig(law="gaussian"))
    with pytest.raises(ValueError, match=r"x_t: expected 24 positions, images of 4 x 6 pixels in 1 channels, got 23"):
        network()(images(2)[:, 1:], torch.tensor([0.2, 0.7]))
    with pytest.raises(ValueError, match="this network has no λ"):
        network()(images(2), torch.tensor([0.2, 0.7]), torch.zeros(2, 1, 1))

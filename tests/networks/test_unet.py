"""The U-Net: time, sizes, and what it refuses. Its shifts by λ: tests/mixtures/test_token.py."""

import pytest
import torch

from di4c_lm.networks.unet import UNet, UnetConfig
from di4c_lm.processes.denoiser import Denoiser
from tests.networks.helpers import LEVELS, images, unet, unet_config

T = torch.tensor([0.2, 0.7])


def test_a_prediction_is_a_distribution_over_levels_and_the_time_matters() -> None:
    network = unet()
    assert isinstance(network, Denoiser)
    log_p = network(images(2), T).log_probs()
    assert log_p.shape == (2, 1, 24, LEVELS)
    torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(2, 1, 24).double())
    assert not torch.allclose(log_p, network(images(2), T.flip(0)).log_probs())


def test_recomputed_activations_change_nothing() -> None:
    grads = []
    for recompute in (False, True):
        network = unet()
        network.activation_checkpointing = recompute
        network(images(2), T).features.square().sum().backward()
        grads.append({name: p.grad for name, p in network.named_parameters()})
    assert all(grad is not None for grad in grads[0].values())
    torch.testing.assert_close(grads[0], grads[1])


def test_shifts_are_apart_from_the_teacher_s_parameters() -> None:
    shifted = UNet(unet_config(), shape=(4, 6, 1), num_states=LEVELS, shifted=True)
    names, plain = {name for name, _ in shifted.named_parameters()}, {name for name, _ in unet().named_parameters()}
    assert plain < names and {name for name in names if UNet.is_shift(name)} == names - plain


def test_the_published_network_has_its_published_size() -> None:
    with torch.device("meta"):
        network = UNet(UnetConfig(), shape=(32, 32, 3))
    count = sum(parameter.numel() for parameter in network.parameters())
    assert round(count / 1e6, 1) == 35.7
    assert network.length == 3072 and not list(network.buffers())


def test_what_it_refuses() -> None:
    with pytest.raises(ValueError, match=r"shape must be rows, columns, channels, .*multiples of 2 .*got \[5, 6, 1\]"):
        UNet(unet_config(), shape=(5, 6, 1))
    with pytest.raises(ValueError, match=r"x_t must have 24 positions, images of 4 x 6 pixels in 1 channels, got 23"):
        unet()(images(2)[:, 1:], T)
    with pytest.raises(ValueError, match="lam must be None for a network without λ"):
        unet()(images(2), T, torch.zeros(2, 1, 8))

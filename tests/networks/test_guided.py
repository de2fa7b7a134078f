"""Guidance of a student whose λ is latent codes: one string of them for the call with the condition and the one without."""

import pytest
import torch

from di4c_lm.mixtures.settings import LatentConfig
from di4c_lm.processes.rng import KeyedRng, uniform
from tests.networks.test_maskgit import CLASS_STRINGS, HEAD, latents, net, time

LABELS = torch.tensor([0, 2, 1])


@pytest.mark.parametrize("latent", [HEAD, CLASS_STRINGS])
def test_the_codes_sampled_with_the_condition_are_told_to_both_calls(latent: LatentConfig) -> None:
    network = net(latent)
    x, rng = torch.full((3, network.length), network.mask_id), KeyedRng(3, torch.arange(3))
    lam = network.sample_latents(3, 1, lambda shape: uniform(rng, shape))
    conditional, free = network.guided(x, time(3), lam, LABELS)

    guided = conditional.log_probs()[:, 0]
    torch.testing.assert_close(guided, network(x, time(3), lam, LABELS).log_probs()[:, 0])
    by_code, free_by_code = (network(x, time(3), latents(network, 3, 0), cond).log_probs() for cond in (LABELS, None))
    code = (guided[:, None] - by_code).abs().amax(3).argmin(1)
    assert len(code.unique()) > 1
    told = free_by_code.gather(1, code[:, None, :, None].expand(-1, -1, -1, free_by_code.shape[3]))
    torch.testing.assert_close(free.log_probs(), told)

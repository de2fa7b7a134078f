"""A denoiser of exact marginals is the source's posterior, alone and under every mixture as it begins."""

import dataclasses

import pytest
import torch

from di4c_lm.data.text.lists import ListOperations
from di4c_lm.data.text.synthetic import MarkovChain
from di4c_lm.mixtures.adaln import AdaLNSettings
from di4c_lm.mixtures.base import MixtureSettings
from di4c_lm.mixtures.class_chain import ClassChainSettings
from di4c_lm.mixtures.codes import CodesSettings
from di4c_lm.mixtures.sequential import SequentialSettings
from di4c_lm.mixtures.token import TokenSettings
from di4c_lm.networks.dit import DitConfig
from di4c_lm.networks.exact import ExactDenoiser, Posterior
from di4c_lm.processes.denoiser import Positions
from di4c_lm.processes.masked import MaskedProcess
from di4c_lm.samplers.grids import uniform_grid
from di4c_lm.samplers.trajectory import sample_keyed

SOURCE = MarkovChain.random(5, 8, sharpness=2.0, seed=0)
TINY = DitConfig(hidden_size=32, num_blocks=2, num_heads=2, cond_dim=8)
MIXTURES: dict[str, MixtureSettings] = {
    "class_chain": ClassChainSettings(codebook_size=5, relations=2),
    "codes": CodesSettings(codebook_size=3, window=1, init_scale=0.3),
    "sequential": SequentialSettings(context=1),
    "token": TokenSettings(),
    "adaln": AdaLNSettings(init_scale=0.3),
}


def network() -> ExactDenoiser:
    torch.manual_seed(0)
    return ExactDenoiser(TINY, posterior=Posterior(SOURCE)).eval()


def masked_sequences() -> torch.Tensor:
    rng = torch.Generator().manual_seed(0)
    x_BD = SOURCE.sample(6, rng)
    x_BD[torch.rand(x_BD.shape, generator=rng) < 0.6] = SOURCE.num_states
    return x_BD


def marginals(denoiser: ExactDenoiser, x_BD: torch.Tensor, num_lambdas: int) -> torch.Tensor:
    """At the masked positions, λ averaged out."""
    rng = torch.Generator().manual_seed(0)
    lam = denoiser.training_latents(len(x_BD), num_lambdas, rng, torch.device("cpu"))
    with torch.no_grad():
        prediction = denoiser(x_BD, torch.full((len(x_BD),), 0.5), lam)
        return prediction.marginals(Positions.where(x_BD == SOURCE.num_states))


def exact(x_BD: torch.Tensor) -> torch.Tensor:
    p_MS = SOURCE.marginals_given(x_BD)[x_BD == SOURCE.num_states]
    return torch.nn.functional.pad(p_MS, (0, 1)).float()


def test_its_prediction_is_the_posterior_and_never_mask() -> None:
    x_BD = masked_sequences()
    p_MS = marginals(network(), x_BD, 1)
    torch.testing.assert_close(p_MS, exact(x_BD), rtol=0, atol=1e-6)
    assert not p_MS[:, -1].any()


@pytest.mark.parametrize("name", MIXTURES)
def test_a_mixture_begins_with_the_exact_marginals_and_learns(name: str) -> None:
    teacher, x_BD = network(), masked_sequences()
    student = MIXTURES[name].over(
        teacher, torch.Generator().manual_seed(0), sequences=lambda: SOURCE.sample(50, torch.Generator())
    )
    fitted = name == "class_chain"  # by Sinkhorn iterations
    torch.testing.assert_close(marginals(student, x_BD, 4), exact(x_BD), rtol=0, atol=1e-2 if fitted else 1e-6)
    if not student.shares_backbone:
        student.network.loosen(torch.Generator().manual_seed(0))
        assert 0 < float((marginals(student, x_BD, 4) - exact(x_BD)).abs().max()) < 0.2
    x_0 = SOURCE.sample(6, torch.Generator().manual_seed(0))
    positions = Positions.where(x_BD == SOURCE.num_states)
    optimizer = torch.optim.Adam([p for p in student.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(30):
        lam = student.training_latents(6, 8, torch.Generator().manual_seed(1), torch.device("cpu"))
        reading = student(x_BD, torch.full((6,), 0.5), lam).read(positions, positions.gather(x_0)[:, None])
        loss = -reading.joint.mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.1


def test_samples_one_position_at_a_time_are_those_of_the_source() -> None:
    source = MarkovChain.random(3, 3, sharpness=2.0, seed=1)
    denoiser = ExactDenoiser(TINY, posterior=Posterior(source)).eval()
    x_ND = sample_keyed(
        denoiser, MaskedProcess(3), (6000, 3), uniform_grid(64), seed=0, sampler="ancestral", batch_size=6000
    ).x
    x_SD = torch.cartesian_prod(*[torch.arange(3)] * 3)
    seen_S = (x_ND[:, None] == x_SD).all(2).double().mean(0)
    assert float((seen_S - source.log_prob(x_SD).exp()).abs().sum() / 2) < 0.03


def test_a_prompt_is_never_masked() -> None:
    lists = ListOperations(("shuffle",), items=4, list_length=3)
    process = MaskedProcess(lists.num_states, given=lists.prompt)
    x_0 = lists.sample(100, torch.Generator().manual_seed(0))
    x_t = process.corrupt(x_0, torch.full((100,), 0.9), torch.Generator().manual_seed(0))
    assert torch.equal(x_t[:, :4], x_0[:, :4]) and float((x_t[:, 4:] == lists.num_states).double().mean()) > 0.8
    denoiser = ExactDenoiser(TINY, posterior=Posterior(lists)).eval()
    given_ND = torch.where(torch.arange(7) < 4, x_0, lists.num_states)
    for steps in (1, 16):
        x_ND = sample_keyed(denoiser, process, (100, 7), uniform_grid(steps), seed=0, x_init=given_ND).x
        assert torch.equal(x_ND[:, :4], x_0[:, :4])
        assert (float(lists.is_right(x_ND).double().mean()) > 0.8) == (steps == 16)


def test_a_width_without_room_for_the_states_is_refused() -> None:
    with pytest.raises(ValueError, match="model.hidden_size must be above the 6 states, got 4"):
        ExactDenoiser(DitConfig(hidden_size=4, num_heads=1), posterior=Posterior(SOURCE))


def test_a_tied_head_is_refused() -> None:
    with pytest.raises(ValueError, match="model.tied must be false where the teacher is exact"):
        ExactDenoiser(dataclasses.replace(TINY, tied=True), posterior=Posterior(SOURCE))

"""A student begins as its teacher; the tokenizers must agree."""

import dataclasses

import pytest
import torch

from di4c_lm.checkpoints.student import check_tokenizer, student_from_teacher
from di4c_lm.checkpoints.weights import Loaded
from di4c_lm.mixtures.latent import is_latent
from di4c_lm.mixtures.settings import LatentConfig
from di4c_lm.networks.dit import DitConfig
from tests.checkpoints.tiny import LATENTS, MODEL, PUBLISHED_LATENT, assert_same_tensors, tiny_dit


def _rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("latent", LATENTS)
def test_all_of_the_teacher_is_copied_and_only_lambda_is_new(latent):
    teacher = tiny_dit().requires_grad_(False)
    student = student_from_teacher(teacher, latent, _rng())
    own = student.state_dict()
    assert_same_tensors({name: own[name] for name in teacher.state_dict()}, teacher.state_dict())
    assert all(is_latent(name) for name in set(own) - set(teacher.state_dict()))
    assert student.latent == latent
    assert student.training
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_the_student_shares_no_memory_with_its_teacher():
    teacher = tiny_dit()
    student = student_from_teacher(teacher, PUBLISHED_LATENT, _rng())
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.fill_(9.0)
    assert_same_tensors(teacher.state_dict(), tiny_dit().state_dict())


def test_a_student_without_influence_of_lambda_predicts_as_its_teacher():
    """λ by adaLN adds shifts and scales: with those at zero, every λ gives the teacher's prediction."""
    teacher = tiny_dit()
    student = student_from_teacher(teacher, LatentConfig(path="adaln"), _rng()).eval()
    with torch.no_grad():
        for layer in student.latent_modulation.parameters():
            layer.zero_()
        x_t, t = torch.full((1, 6), teacher.mask_id), torch.tensor([1.0])
        found = student(x_t, t, torch.tensor([[[0.1], [0.9]]])).log_probs()
        expected = teacher(x_t, t).log_probs().expand_as(found)
    torch.testing.assert_close(found, expected)


def test_the_generator_is_the_only_source_of_chance():
    before = torch.get_rng_state()
    first, again, other = (
        student_from_teacher(tiny_dit(), PUBLISHED_LATENT, _rng(seed)).state_dict() for seed in (0, 0, 1)
    )
    state_after = torch.get_rng_state()
    assert_same_tensors(first, again)
    assert not torch.equal(first["latent_projection.0.weight"], other["latent_projection.0.weight"])
    torch.set_rng_state(before)
    tiny_dit()
    tiny_dit()
    tiny_dit()
    assert torch.equal(torch.get_rng_state(), state_after)


def test_a_mixture_teacher_hands_on_its_lambda_path():
    teacher = tiny_dit(PUBLISHED_LATENT)
    assert_same_tensors(student_from_teacher(teacher, PUBLISHED_LATENT, _rng()).state_dict(), teacher.state_dict())


@pytest.mark.parametrize("latent", [None, LatentConfig(path="adaln"), LatentConfig(inject_at=1)])
def test_a_mixture_teacher_of_another_kind_is_refused(latent):
    with pytest.raises(ValueError, match="differs from that of the teacher"):
        student_from_teacher(tiny_dit(PUBLISHED_LATENT), latent, _rng())


def test_settings_without_shape_may_differ_and_shapes_may_not():
    student = student_from_teacher(tiny_dit(), PUBLISHED_LATENT, _rng(), model=dataclasses.replace(MODEL, dropout=0.5))
    assert student.config.dropout == 0.5
    larger = DitConfig(hidden_size=16, num_blocks=3, num_heads=2, cond_dim=4)
    with pytest.raises(ValueError) as caught:
        student_from_teacher(tiny_dit(), PUBLISHED_LATENT, _rng(), model=larger)
    assert "missing: blocks.2.attn_out.weight 16x16" in str(caught.value)
    assert "misshapen: sigma_map.mlp.2.weight is 8x8, expected 4x4" in str(caught.value)


def test_dtype_follows_the_teacher():
    student = student_from_teacher(tiny_dit().double(), PUBLISHED_LATENT, _rng())
    assert {parameter.dtype for parameter in student.parameters()} == {torch.float64}


def test_another_tokenizer_is_refused():
    loaded = Loaded(network=tiny_dit(), length=6, extra={"tokenizer": "abc"})
    check_tokenizer(loaded, fingerprint="abc", num_states=11, source="here")
    with pytest.raises(ValueError, match="here: its network has 11 states, the tokenizer 12"):
        check_tokenizer(loaded, fingerprint="abc", num_states=12, source="here")
    with pytest.raises(ValueError, match="here: trained with another tokenizer: fingerprint abc, .* xyz"):
        check_tokenizer(loaded, fingerprint="xyz", num_states=11, source="here")
    published = Loaded(network=tiny_dit(), length=6, extra={})
    check_tokenizer(published, fingerprint="xyz", num_states=11, source="here")

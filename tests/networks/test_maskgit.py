import pytest
import torch

from di4c_lm.networks.maskgit import MaskGit, MaskGitConfig
from di4c_lm.processes.denoiser import NO_CLASS, Denoiser
from tests.networks.helpers import CLASSES, CODE_LENGTH, CODES, codes, half, maskgit


def test_a_prediction_is_a_distribution_over_codes() -> None:
    network = maskgit()
    assert isinstance(network, Denoiser)
    p = network(codes(5), half(5), None, torch.tensor([0, 1, 2, NO_CLASS, 0])).log_probs().exp()
    assert p.shape == (5, 1, CODE_LENGTH, CODES + 1)
    torch.testing.assert_close(p.sum(-1), torch.ones_like(p[..., 0]))
    assert bool((p[..., network.mask_id] == 0).all())


def test_mask_state_is_the_published_distribution() -> None:
    p, q = (one(codes(2), half(2)).log_probs().exp() for one in (maskgit(mask_state=True), maskgit()))
    assert bool((p[..., CODES] > 0).all())
    rest = p[..., :CODES] / p[..., :CODES].sum(-1, keepdim=True)
    torch.testing.assert_close(q[..., :CODES], rest)


def test_the_class_is_read_and_none_is_no_class() -> None:
    network, x_t = maskgit(), codes(2)
    first, other = (network(x_t, half(2), None, torch.full((2,), c)).features for c in (0, 1))
    hidden, absent = (network(x_t, half(2), None, c).features for c in (torch.full((2,), NO_CLASS), None))
    assert not torch.allclose(first, other) and not torch.allclose(first, hidden)
    torch.testing.assert_close(hidden, absent)


def test_recomputed_activations_give_the_same_gradients() -> None:
    grads = []
    for recompute in (False, True):
        network = maskgit()
        network.activation_checkpointing = recompute
        network(codes(2), half(2)).log_probs()[..., :CODES].square().mean().backward()
        grads.append({name: p.grad for name, p in network.named_parameters()})
    assert all(grad is not None and bool(grad.any()) for grad in grads[0].values())
    torch.testing.assert_close(grads[0], grads[1])


def test_dropout_only_in_training() -> None:
    network = maskgit(dropout=0.5)
    assert torch.equal(network(codes(2), half(2)).features, network(codes(2), half(2)).features)
    network.train()
    assert not torch.equal(network(codes(2), half(2)).features, network(codes(2), half(2)).features)


@pytest.mark.parametrize("label", [CLASSES, NO_CLASS - 1])
def test_a_class_out_of_range_is_refused(label: int) -> None:
    with pytest.raises(ValueError, match=f"class must be 0 to 2, or -1 for none, got {label}"):
        maskgit()(codes(2), half(2), None, torch.tensor([0, label]))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="x_t must have 4 codes a sequence, got 3"):
        maskgit()(codes(2)[:, :3], half(2))
    with pytest.raises(ValueError, match="lam must be None"):
        maskgit()(codes(2), half(2), torch.zeros(2, 1, 1))
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        MaskGit(MaskGitConfig(), num_codes=3, num_classes=0, length=4)
    with pytest.raises(ValueError, match="hidden_size must be a multiple of num_heads = 4, got 10"):
        MaskGitConfig(hidden_size=10, num_heads=4)


def test_the_published_teacher_has_174_million_parameters() -> None:
    with torch.device("meta"):
        network = MaskGit(MaskGitConfig(), num_codes=1024, num_classes=1000, length=256)
    assert network.tok_emb.weight.shape == (2026, 768) and network.bias.shape == (257, 2026)
    assert round(sum(p.numel() for p in network.parameters()), -3) == 174_161_000

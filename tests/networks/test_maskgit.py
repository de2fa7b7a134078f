import pytest
import torch
from torch import Tensor

from di4c_lm.losses.reading import read_mixture
from di4c_lm.mixtures.latent import is_latent
from di4c_lm.mixtures.settings import LatentConfig
from di4c_lm.networks.maskgit import MaskGit, MaskGitConfig
from di4c_lm.processes.denoiser import NO_CLASS, Denoiser

CODES, CLASSES, LENGTH, BLOCKS = 7, 3, 4, 3
LATENTS = [
    LatentConfig(law="uniform", path="token", inject_at=0),
    LatentConfig(law="codebook", path="token", inject_at=2, codebook_size=4),
    LatentConfig(law="gaussian", path="adaln", inject_at=-1, dim=3, init_scale=0.5),
    LatentConfig(law="stratified", path="adaln", inject_at=0, init_scale=0.5),
]
HEAD = LatentConfig(law="codebook", path="head", codebook_size=3, window=2, init_scale=0.5)
CLASS_STRINGS = LatentConfig(law="codebook", path="classes", codebook_size=3, relations=2)


def net(latent: LatentConfig | None = None, **settings: object) -> MaskGit:
    """A network in float64; all share every weight that is not of the λ path."""
    model = MaskGitConfig(
        **{"hidden_size": 16, "num_blocks": BLOCKS, "num_heads": 2, "mlp_size": 24, "dropout": 0.0, **settings}
    )  # pyright: ignore
    network = MaskGit(model, num_codes=CODES, num_classes=CLASSES, length=LENGTH, latent=latent).double()
    for index, (name, parameter) in enumerate(network.named_parameters()):
        rng = torch.Generator().manual_seed(index + 500 * is_latent(name))
        parameter.data = torch.randn(parameter.shape, generator=rng, dtype=torch.float64) * 0.3
    return network.eval()


def tokens(num_batch: int, seed: int = 0) -> Tensor:
    return torch.randint(CODES + 1, (num_batch, LENGTH), generator=torch.Generator().manual_seed(seed))


def latents(network: MaskGit, num_batch: int, num_lambdas: int) -> Tensor | None:
    rng = torch.Generator().manual_seed(2)
    return network.sample_latents(num_batch, num_lambdas, lambda shape: torch.rand(shape, generator=rng).double())


def time(num_batch: int) -> Tensor:
    return torch.full((num_batch,), 0.5)


@pytest.mark.parametrize("latent", [None, *LATENTS, HEAD, CLASS_STRINGS])
def test_a_prediction_is_a_law_over_codes(latent: LatentConfig | None) -> None:
    network, x_t = net(latent), tokens(5)
    assert isinstance(network, Denoiser)
    lam = latents(network, 5, 4)
    p = network(x_t, time(5), lam, torch.tensor([0, 1, 2, NO_CLASS, 0])).log_probs().exp()
    assert p.shape == (5, 1 if lam is None else 4, LENGTH, CODES + 1)
    torch.testing.assert_close(p.sum(-1), torch.ones_like(p[..., 0]))
    assert bool((p[..., network.mask_id] == 0).all())
    if lam is not None:
        assert not torch.allclose(p[:, 0], p[:, 1])


def test_mask_state_is_the_published_law() -> None:
    free, held = net(mask_state=True), net()
    p, q = (one(tokens(2), time(2)).log_probs().exp() for one in (free, held))
    assert bool((p[..., CODES] > 0).all())
    rest = p[..., :CODES] / p[..., :CODES].sum(-1, keepdim=True)
    torch.testing.assert_close(q[..., :CODES], rest)


@pytest.mark.parametrize("latent", [*LATENTS, HEAD, CLASS_STRINGS])
def test_without_lambda_the_student_is_its_teacher(latent: LatentConfig) -> None:
    labels = torch.tensor([2, NO_CLASS])
    ours, theirs = (one(tokens(2), time(2), None, labels).log_probs() for one in (net(latent), net()))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("latent", [*LATENTS, HEAD, CLASS_STRINGS])
def test_rows_of_lambda_are_apart_and_shared_blocks_change_nothing(latent: LatentConfig) -> None:
    network = net(latent)
    x_t, labels = tokens(2).repeat(2, 1), torch.tensor([0, 1, 0, 2])
    lam = latents(network, 4, 3)
    assert lam is not None
    recorded = network(x_t, time(4), lam, labels).features
    with torch.no_grad():  # equal sequences of one class share the blocks before λ
        together = network(x_t, time(4), lam, labels).features
        alone = network(x_t[3:], time(1), lam[3:, 1:2], labels[3:]).features
    torch.testing.assert_close(together, recorded)
    torch.testing.assert_close(alone[0, 0], recorded[3, 1])


def test_the_class_is_read_and_none_is_no_class() -> None:
    network, x_t = net(), tokens(2)
    told, other = (network(x_t, time(2), None, torch.full((2,), c)).features for c in (0, 1))
    untold, absent = (network(x_t, time(2), None, c).features for c in (torch.full((2,), NO_CLASS), None))
    assert not torch.allclose(told, other) and not torch.allclose(told, untold)
    torch.testing.assert_close(untold, absent)


@pytest.mark.parametrize("latent", LATENTS)
def test_gradients_reach_every_parameter_and_checkpointing_changes_none(latent: LatentConfig) -> None:
    grads = []
    for checkpointing in (False, True):
        network = net(latent).train()
        network.activation_checkpointing = checkpointing
        prediction = network(tokens(2), time(2), latents(network, 2, 4), torch.tensor([0, 2]))
        features = prediction.features.transpose(1, 2).flatten(0, 1)
        positions = torch.arange(LENGTH).repeat(2)
        targets = tokens(2, seed=3).flatten()[:, None].clamp_max(CODES - 1)
        reading = read_mixture(features, positions, prediction.output_head, targets)
        reading.target_log_p.logsumexp(1).sum().backward()
        grads.append({name: p.grad for name, p in network.named_parameters()})
    assert all(grad is not None and bool(grad.any()) for grad in grads[0].values())
    torch.testing.assert_close(grads[0], grads[1])


def test_strings_of_codes_say_of_each_position_what_its_window_s_code_says() -> None:
    network, x_t, labels = net(HEAD), tokens(2), torch.tensor([0, NO_CLASS])
    codes = network(x_t, time(2), latents(network, 2, 0), labels)
    assert codes.chain is not None and codes.features.shape[:3] == (2, 3, LENGTH)
    drawn = network(x_t, time(2), latents(network, 2, 50), labels).features
    same_BNLD = torch.isclose(drawn[:, :, None], codes.features[:, None], rtol=1e-9, atol=1e-12).all(-1)
    assert bool(same_BNLD.any(2).all())
    code_BND = same_BNLD.double().argmax(2)
    assert torch.equal(code_BND[..., 0], code_BND[..., 1]) and torch.equal(code_BND[..., 2], code_BND[..., 3])
    assert len(code_BND.flatten(0, 1).unique(dim=0)) > 3, "windows of one string may differ"


def test_gradients_reach_the_head_and_recomputing_changes_none() -> None:
    grads = []
    for recompute in (False, True):
        network = net(HEAD)
        network.activation_checkpointing = recompute
        codes = network(tokens(2), time(2), latents(network, 2, 0))
        (codes.features.square().sum() + codes.chain.log_step[..., 0].sum()).backward()
        grads.append({name: p.grad for name, p in network.named_parameters() if name != "bias"})
    assert all(grad is not None and bool(grad.any()) for grad in grads[0].values())
    torch.testing.assert_close(grads[0], grads[1])


def test_dropout_only_in_training() -> None:
    network = net(dropout=0.5)
    assert torch.equal(network(tokens(2), time(2)).features, network(tokens(2), time(2)).features)
    network.train()
    assert not torch.equal(network(tokens(2), time(2)).features, network(tokens(2), time(2)).features)


@pytest.mark.parametrize("label", [CLASSES, NO_CLASS - 1])
def test_a_class_out_of_range_is_refused(label: int) -> None:
    with pytest.raises(ValueError, match=f"class {label} is impossible: allowed are 0 to 2, and -1 for none"):
        net()(tokens(2), time(2), None, torch.tensor([0, label]))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="x_t: expected 4 codes a sequence, got 3"):
        net()(tokens(2)[:, :3], time(2))
    with pytest.raises(ValueError, match="lam: expected none"):
        net()(tokens(2), time(2), torch.zeros(2, 1, 1))
    with pytest.raises(ValueError, match=r"lam: expected shape \(B=2, L >= 1, K\)"):
        net(LATENTS[0])(tokens(2), time(2), torch.zeros(2, 1))
    with pytest.raises(ValueError, match="inject_at=3 must be below"):
        net(LatentConfig(inject_at=BLOCKS))
    with pytest.raises(ValueError, match="codebook_size must be at least 1"):
        net(LatentConfig(law="codebook", codebook_size=0))
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        MaskGit(MaskGitConfig(), num_codes=3, num_classes=0, length=4)
    with pytest.raises(ValueError, match="hidden_size must be a multiple of num_heads = 4, got 10"):
        MaskGitConfig(hidden_size=10, num_heads=4)


def test_the_published_teacher_has_174_million_parameters() -> None:
    with torch.device("meta"):
        network = MaskGit(MaskGitConfig(), num_codes=1024, num_classes=1000, length=256)
    assert network.tok_emb.weight.shape == (2026, 768) and network.bias.shape == (257, 2026)
    assert round(sum(p.numel() for p in network.parameters()), -3) == 174_161_000

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from di4c_lm.networks.vqgan import Codebook, VqGan, VqganConfig

SMALL = {
    "n_embed": 6,
    "embed_dim": 3,
    "z_channels": 4,
    "resolution": 8,
    "ch": 8,
    "ch_mult": (1, 2),
    "num_res_blocks": 1,
}


def config(**settings_: object) -> VqganConfig:
    return VqganConfig(**{**SMALL, "attn_resolutions": (4,), "norm_groups": 4, **settings_})  # pyright: ignore


def network(**settings_: object) -> VqGan:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return VqGan(config(**settings_)).double().eval()


def images(num_batch: int = 2, channels: int = 3, side: int = 8) -> Tensor:
    rng = torch.Generator().manual_seed(1)
    return torch.rand(num_batch, channels, side, side, generator=rng, dtype=torch.float64) * 2 - 1


@settings(max_examples=6, deadline=None)
@given(levels=st.integers(1, 3), side=st.integers(1, 3), channels=st.sampled_from([1, 3]), batch=st.integers(1, 3))
def test_any_size_goes_there_and_back(levels: int, side: int, channels: int, batch: int) -> None:
    resolution = side * 2 ** (levels - 1)
    net = network(ch_mult=(1,) * levels, resolution=resolution, in_channels=channels, out_ch=channels)
    image = images(batch, channels, resolution)
    codes = net.encode(image)
    assert codes.shape == (batch, side**2) and net.length == side**2
    assert 0 <= int(codes.min()) <= int(codes.max()) < net.num_codes
    there_and_back, quantised = net(image)
    assert torch.equal(quantised.codes, codes)
    torch.testing.assert_close(net.decode(codes), there_and_back.clamp(-1, 1))


def test_the_nearest_code_row_by_row() -> None:
    book = Codebook(config()).double()
    z = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 0.1
    quantised = book(z)
    for place in range(20):
        vector = z[1, :, place // 5, place % 5]
        code = int(quantised.codes[1, place])
        assert code == int((book.embedding.weight - vector).square().sum(1).argmin())
        torch.testing.assert_close(quantised.vectors[1, :, place // 5, place % 5], book.embedding.weight[code])
    torch.testing.assert_close(book.lookup(quantised.codes, 4), quantised.vectors)


def test_gradients_pass_the_codebook_and_the_loss_pulls_both_ways() -> None:
    book = Codebook(config(beta=0.25)).double()
    z = images(2, 3, 4).requires_grad_()
    quantised = book(z)
    (through,) = torch.autograd.grad(quantised.vectors.square().sum() / 2, z, retain_graph=True)
    torch.testing.assert_close(through, quantised.vectors)
    to_z, to_codes = torch.autograd.grad(quantised.loss, [z, book.embedding.weight])
    apart = (z - quantised.vectors).detach()
    torch.testing.assert_close(to_z, 0.25 * 2 * apart / z.numel())
    torch.testing.assert_close(to_codes.sum(0), -2 * apart.sum((0, 2, 3)) / z.numel())
    torch.testing.assert_close(quantised.loss.detach(), 1.25 * apart.square().mean())


def test_every_parameter_learns() -> None:
    net = network().train()
    image, quantised = net(images())
    ((image - images()).square().mean() + quantised.loss).backward()
    # The bias of the keys adds the same to every score, which a softmax does not see.
    idle = {name for name, p in net.named_parameters() if p.grad is None or float(p.grad.abs().max()) < 1e-14}
    assert idle == {name for name, _ in net.named_parameters() if name.endswith(".k.bias")}


def test_what_does_not_fit_is_refused() -> None:
    net = network()
    with pytest.raises(ValueError, match=r"image: expected shape \(B, 3, 8, 8\), got \(2, 3, 6, 6\)"):
        net.encode(images(side=6))
    with pytest.raises(ValueError, match="codes: expected 16 an image, got 15"):
        net.decode(torch.zeros(1, 15, dtype=torch.int64))
    with pytest.raises(ValueError, match="codes: expected 0 to 5, got 0 to 6"):
        net.decode(torch.arange(7).repeat(3)[None, :16])
    with pytest.raises(ValueError, match=r"resolution must be a multiple of .* = 2, got 9"):
        config(resolution=9)
    with pytest.raises(ValueError, match="ch must be a multiple of norm_groups = 4, got 6"):
        config(ch=6)
    with pytest.raises(ValueError, match=r"ch_mult must be factors above 0, got \[\]"):
        config(ch_mult=())


def test_the_published_network_has_16_by_16_codes() -> None:
    published = VqganConfig()
    assert (published.side, published.factor, published.n_embed) == (16, 16, 1024)
    with torch.device("meta"):
        net = VqGan(published)
    shapes = {name: tuple(p.shape) for name, p in net.named_parameters()}
    assert shapes["encoder.down.4.attn.1.q.weight"] == (512, 512, 1, 1)
    assert shapes["decoder.up.4.upsample.conv.weight"] == (512, 512, 3, 3)
    assert "encoder.down.4.downsample.conv.weight" not in shapes and "decoder.up.0.upsample.conv.weight" not in shapes

import dataclasses

import numpy as np
import pytest
import torch

from di4c_lm.data.images.images import ImageSet, ImageSource
from di4c_lm.networks.vqgan import VqGan, VqganConfig
from di4c_lm.objectives.vqgan import VqganObjective, start_codebook

SHAPE = (4, 4, 1)


def images(count: int = 64) -> ImageSet:
    rng = np.random.default_rng(0)
    return ImageSet(
        images=rng.integers(0, 5, (count, *SHAPE), dtype=np.uint8),
        labels=np.zeros(count, dtype=np.int64),
        classes=("a",),
        name="noise",
        levels=5,
    )


def network() -> VqGan:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return VqGan(
            VqganConfig(
                n_embed=8, embed_dim=4, z_channels=4, resolution=4, in_channels=1, out_ch=1, ch=8, ch_mult=(1, 1),
                num_res_blocks=1, attn_resolutions=(), norm_groups=4,
            )
        )  # fmt: skip


def test_the_loss_is_its_parts() -> None:
    net, batch = network().train(), ImageSource(images(), 0).read(0, 16)
    loss, metrics = VqganObjective(net, SHAPE, 5, usage=0.5)(batch)
    planes = torch.from_numpy(images().images[batch.sample_id.numpy()]).permute(0, 3, 1, 2) / 2 - 1
    decoded, quantised = net(planes)
    absolute = (decoded - planes).abs().mean()
    torch.testing.assert_close(metrics["squared_error"], (decoded - planes).square().mean())
    expected = absolute + metrics["squared_error"] + quantised.loss + 0.5 * (1 - metrics["code_entropy"])
    torch.testing.assert_close(loss, expected)
    assert 0 <= float(metrics["code_entropy"]) <= 1


def test_the_codebook_starts_in_the_data_and_training_lowers_the_error() -> None:
    net = network()
    level_N111 = np.random.default_rng(0).integers(0, 5, (64, 1, 1, 1), dtype=np.uint8)
    flat = dataclasses.replace(
        images(), images=np.broadcast_to(level_N111, (64, *SHAPE)).copy()
    )  # five images, five codes
    planes = torch.from_numpy(flat.images).permute(0, 3, 1, 2) / 2 - 1
    start_codebook(net, planes, torch.Generator().manual_seed(0))
    with torch.no_grad():
        vectors = net.quant_conv(net.encoder(planes)).movedim(1, 3).flatten(0, 2)
        apart_KN = (net.quantize.embedding.weight[:, None] - vectors).abs().amax(2)
        assert float(apart_KN.amin(1).max()) < 1e-5
    objective, source = VqganObjective(net.train(), SHAPE, 5), ImageSource(flat, 0)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    errors = []
    for step in range(30):
        loss, metrics = objective(source.read(step * 32, 32))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(float(metrics["squared_error"]))
    assert sum(errors[-5:]) < 0.6 * sum(errors[:5])


def test_fewer_places_than_codes() -> None:
    with pytest.raises(ValueError, match="1 images have 4 places, fewer than n_embed=8"):
        start_codebook(network(), torch.zeros(1, 1, 4, 4), torch.Generator())

"""The cross-entropy that trains the teachers of images."""

import dataclasses

import pytest
import torch
from torch import Tensor

from di4c_lm.data.batches import BatchStream
from di4c_lm.networks.unet import UNet
from di4c_lm.objectives.denoising import Denoising
from di4c_lm.objectives.mdlm import Mdlm
from tests.objectives.helpers import (
    GAUSSIAN,
    LEVELS,
    MASKED,
    PIXEL,
    PIXELS,
    check_batch_is_mean_of_examples,
    gradients,
    pixel_batch,
    pixel_network,
    text_batch,
    text_network,
)


def test_a_batch_is_the_mean_of_its_examples() -> None:
    of = Denoising(label_drop=0.3).build(pixel_network(), GAUSSIAN, seed=0)
    check_batch_is_mean_of_examples(of, pixel_batch(*range(5)), [pixel_batch(i) for i in range(5)])


def test_cross_entropy_is_least_at_the_true_marginals() -> None:
    """Training lowers it on data that is certain."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = UNet(PIXEL, shape=(2, 2, 1), num_states=LEVELS)
    of = Denoising().build(net, GAUSSIAN, seed=0)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    data = dataclasses.replace(pixel_batch(*range(64)), x=torch.full((64, PIXELS), 3))
    first = float(of(data)[0].detach())
    metrics: dict[str, Tensor] = {}
    for _ in range(40):
        optimizer.zero_grad()
        loss, metrics = of(data)
        loss.backward()
        optimizer.step()
    assert float(metrics["cross_entropy"]) < 0.3 * first
    assert of.external_parameters() == []


@pytest.mark.parametrize("kind", ["text", "pixels"])
def test_products_in_bfloat16_leave_weights_and_gradients_in_float32_and_near(kind: str) -> None:
    settings, network, process, batch = {
        "text": (Mdlm, text_network, MASKED, text_batch(*range(64))),
        "pixels": (Denoising, pixel_network, GAUSSIAN, pixel_batch(*range(64))),
    }[kind]
    exact = settings().build(network().float(), process, seed=0)
    narrow = settings(matmul_dtype="bfloat16").build(network().float(), process, seed=0)
    loss, expected = narrow(batch)[0], exact(batch)[0]
    error = abs(float((loss / expected).detach()) - 1)
    assert loss.dtype == expected.dtype and 1e-7 < error < 0.02
    found, right = (torch.cat([one.flatten() for one in gradients(of, batch).values()]) for of in (narrow, exact))
    assert found.dtype == torch.float32
    assert float(torch.nn.functional.cosine_similarity(found, right, dim=0)) > 0.99


class Source:
    """24 images."""

    identity = "made up"

    def __len__(self) -> int:
        return 24

    def read(self, start: int, count: int):
        return pixel_batch(*(i % 24 for i in range(start, start + count)))


def test_the_times_of_a_stratified_batch_are_antithetic_above_the_lowest_time() -> None:
    of, seen = Denoising().build(pixel_network(), GAUSSIAN, seed=0), []
    run = of.student.forward

    def forward(x_t: Tensor, t: Tensor, *rest: object, **_: object) -> object:
        seen.append(t.double())
        return run(x_t, t, *rest)

    setattr(of.student, "forward", forward)  # noqa: B010
    batches = BatchStream(Source(), micro_batch_size=12, rank=0, world_size=1, stratified=True)
    for _ in range(3):
        of(next(batches))
        share_B = (1 - seen[-1]) / (1 - GAUSSIAN.min_time)
        assert sorted((share_B * 12).floor().int().tolist()) == list(range(12))

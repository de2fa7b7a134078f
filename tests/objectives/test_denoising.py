"""The cross-entropy that trains the teachers of images."""

import dataclasses

import torch
from torch import Tensor

from di4c_lm.data.batches import BatchStream
from di4c_lm.networks.unet import UNet
from di4c_lm.objectives.denoising import Denoising
from tests.objectives.helpers import (
    GAUSSIAN,
    LEVELS,
    PIXEL,
    PIXELS,
    check_batch_is_mean_of_examples,
    pixel_batch,
    pixel_network,
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

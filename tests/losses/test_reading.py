import pytest
import torch

from di4c_lm.losses.reading import mixture_marginals, read_mixture, sample_rows
from di4c_lm.networks.output_head import LinearHead
from di4c_lm.processes.denoiser import row_chunks, rows_at_once
from tests.losses.problem import draw


def test_a_draw_and_its_law_come_from_one_reading() -> None:
    problem = draw(0, 2, 3, 5, 9, masked_share=0.8, with_impossible=True)
    output_head = LinearHead(problem.weight, problem.bias, impossible=8)
    num_sites = len(problem.x_0)
    site_N = torch.arange(num_sites).repeat_interleave(3)
    features_NH = problem.features.flatten(0, 1)
    u_N = torch.rand(len(site_N), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = []
    for chunk_rows in (0, 1, 4):
        marginal_MS = torch.zeros(num_sites, 9, dtype=torch.float64)
        drawn_N = sample_rows(
            features_NH,
            problem.positions.position[site_N],
            output_head,
            u_N,
            marginal_MS,
            site_N,
            1 / 3,
            chunk_rows=chunk_rows,
        )
        torch.testing.assert_close(
            marginal_MS, mixture_marginals(problem.features, problem.positions.position, output_head)
        )
        found.append(drawn_N)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    cdf_NS = output_head.logits(features_NH, site_N).softmax(1).cumsum(1)
    assert torch.equal(found[0], torch.searchsorted(cdf_NS, u_N[:, None], right=True)[:, 0])


def test_targets_alone_need_no_law() -> None:
    problem = draw(0, 1, 2, 4, 6)
    output_head = LinearHead(problem.weight, problem.bias)
    reading = read_mixture(problem.features, problem.positions.position, output_head, problem.x_0[:, None])
    log_p_MLS = (problem.features @ problem.weight.T + problem.bias).log_softmax(2)
    expected = log_p_MLS.gather(2, problem.x_0[:, None, None].expand(-1, 2, 1))
    torch.testing.assert_close(reading.target_log_p, expected)
    assert reading.divergence.shape == (len(problem.x_0), 0)
    assert bool((reading.component_divergence == 0).all())


@pytest.mark.parametrize("total, size", [(0, 3), (1, 3), (3, 3), (10, 3)])
def test_chunks_cover_everything_once(total: int, size: int) -> None:
    rows = [i for chunk in row_chunks(total, size) for i in range(total)[chunk]]
    assert rows == list(range(total))
    assert all(chunk.stop - chunk.start <= size for chunk in row_chunks(total, size))


def test_chunks_hold_2_to_the_23_logits_on_cpu_unless_told() -> None:
    output_head = LinearHead(torch.zeros(2**14, 1))
    assert rows_at_once(output_head, 0) == 2**9
    assert rows_at_once(output_head, 7) == 7
    assert rows_at_once(LinearHead(torch.zeros(2**24, 1)), 0) == 1

"""`tauldr_transition`: the chain's rates, its transitions between times, and the distribution that it begins from."""

from collections.abc import Iterator

import torch

from di4c_lm.processes.gaussian import GaussianChain
from tests.parity.golden import Computed, Golden, Tolerance

INPUTS = ("ts", "ss", "rows")
_ENTRY = Tolerance(atol=2e-6)
_SCALAR = Tolerance(rtol=1e-5)


def chain_of(settings: dict[str, float], num_states: int) -> GaussianChain:
    """The chain that the file names."""
    return GaussianChain(
        num_states=num_states,
        rate_sigma=settings["rate_sigma"],
        q_sigma=settings["Q_sigma"],
        time_base=settings["time_base"],
        time_exponential=settings["time_exponential"],
    )


def compute(golden: Golden) -> Iterator[Computed]:
    """Every array but the times and the rows that are kept."""
    chain = chain_of(golden.meta, len(golden.tensor("initial_probs")))
    t_K, s_K, rows = golden.tensor("ts"), golden.tensor("ss"), golden.tensor("rows")
    rate_SS = chain.rate_matrix()
    rate_KSS = rate_SS * chain.rate(t_K)[:, None, None]
    whole_KSS, hop_KSS = chain.transition(t_K), chain.transition(t_K, s_K)
    yield Computed("integral_rate_scalar", chain.integral(t_K), _SCALAR)
    yield Computed("rate_scalar", chain.rate(t_K), _SCALAR)
    yield Computed("base_rate", rate_SS[rows], _ENTRY)
    yield Computed("rate", rate_KSS[:, rows], Tolerance(atol=2e-6, rtol=1e-5))
    yield Computed("base_rate_sum", rate_SS.abs().sum(), _SCALAR)
    yield Computed("rate_abs_sum", rate_KSS.abs().sum((1, 2)), _SCALAR)
    for name, q_KSS in (("transition", whole_KSS), ("transition_ts", hop_KSS)):
        yield Computed(name, q_KSS[:, rows], _ENTRY)
        yield Computed(f"expm64_{name}", q_KSS[:, rows], Tolerance(atol=2e-7))
        yield Computed(f"{name}_sq_sum", (q_KSS**2).sum((1, 2)), _SCALAR)
    values_S = torch.linalg.eigvals(rate_SS).real.sort().values
    yield Computed("eigvals_sorted", values_S, Tolerance(atol=2e-6 * float(values_S.abs().max())))
    yield Computed("transition_row_sums", whole_KSS.sum(2), _ENTRY)
    yield Computed("transition_diag", whole_KSS.diagonal(dim1=1, dim2=2), _ENTRY)
    yield Computed("initial_probs", chain.stationary(), Tolerance(rtol=1e-12))

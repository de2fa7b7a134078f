"""What follows from visible positions, against enumeration, and the characters of a text against the other n-gram model."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from di4c_lm.data.text.characters import ALPHABET, Ngram, kneser_ney, states_of
from di4c_lm.data.text.hidden_markov import HiddenMarkov
from di4c_lm.data.text.lists import OPERATIONS, ListOperations, bound
from di4c_lm.data.text.synthetic import CodewordMixture, CorrelatedBits, MarkovChain, Source
from di4c_lm.measure.text.counting import NgramModel


def ngram(order: int, num_states: int = 3, length: int = 5, precision: torch.dtype = torch.float64) -> Ngram:
    rng = torch.Generator().manual_seed(order)
    first = torch.rand([num_states] * (order - 1), generator=rng, dtype=torch.float64)
    table = torch.rand([num_states] * order, generator=rng, dtype=torch.float64) ** 4
    return Ngram(first / first.sum(), table / table.sum(-1, keepdim=True), length, precision)


SOURCES: dict[str, Source] = {
    "chain": MarkovChain.random(3, 4, sharpness=1.5, seed=0),
    "hidden": HiddenMarkov.random(4, 3, 4, sharpness=1.5, seed=0),
    "codewords": CodewordMixture.random(3, 3, 4, noise=0.2, seed=1),
    "bits": CorrelatedBits(6, 3, 0.1),
    **{f"{order}-grams": ngram(order) for order in (2, 3, 4)},
}


def every_sequence(source: Source) -> torch.Tensor:
    return torch.cartesian_prod(*[torch.arange(source.num_states)] * source.length)


@pytest.mark.parametrize("name", SOURCES)
def test_what_is_visible_tells_of_the_rest_as_enumeration_does(name: str) -> None:
    source = SOURCES[name]
    x_ND = every_sequence(source)
    p_N = source.log_prob(x_ND).exp()
    assert float(p_N.sum()) == pytest.approx(1, abs=1e-12)
    rng = torch.Generator().manual_seed(0)
    for hidden in itertools.product([False, True], repeat=source.length):
        hidden_D = torch.tensor(hidden)
        x_BD = torch.where(hidden_D, source.num_states, source.sample(3, rng))
        weight_BN = p_N * ((x_ND == x_BD[:, None]) | hidden_D).all(2)
        torch.testing.assert_close(source.log_evidence(x_BD), weight_BN.sum(1).log(), rtol=0, atol=1e-10)
        one_NDS = torch.nn.functional.one_hot(x_ND, source.num_states).double()
        expected_BDS = torch.einsum("bn,nds->bds", weight_BN, one_NDS) / weight_BN.sum(1)[:, None, None]
        torch.testing.assert_close(source.marginals_given(x_BD).double(), expected_BDS, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["hidden", "2-grams", "3-grams", "4-grams"])
def test_pairs_and_samples_follow_the_distribution(name: str) -> None:
    source, count = SOURCES[name], 20_000
    x_ND = every_sequence(source)
    p_N, pair_PSS = source.log_prob(x_ND).exp(), source.pair_marginals()  # pyright: ignore[reportAttributeAccessIssue]
    for d, (v, w) in itertools.product(range(source.length - 1), itertools.product(range(3), repeat=2)):
        here_N = (x_ND[:, d] == v) & (x_ND[:, d + 1] == w)
        assert float(pair_PSS[d, v, w]) == pytest.approx(float(p_N[here_N].sum()), abs=1e-12)
    place_D = source.num_states ** torch.arange(source.length - 1, -1, -1)
    code_N = (source.sample(count, torch.Generator().manual_seed(0)) * place_D).sum(1)
    often_N = p_N * count > 5
    seen_N, expected_N = code_N.bincount(minlength=len(p_N))[often_N], (p_N * count)[often_N]
    chi2, degrees = float(((seen_N - expected_N) ** 2 / expected_N).sum()), int(often_N.sum())
    assert chi2 < degrees + 5 * math.sqrt(2 * degrees)


@pytest.mark.parametrize("name", ["hidden", "3-grams"])
def test_one_position_after_the_other_is_the_distribution_itself(name: str) -> None:
    """The chain rule through the marginals, in an order of its own a sequence, is log p."""
    source, rng = SOURCES[name], torch.Generator().manual_seed(0)
    x_ND = source.sample(20, rng)
    order_ND = torch.rand(x_ND.shape, generator=rng).argsort(1)
    x_t, log_p_N, row_N = torch.full_like(x_ND, source.num_states), torch.zeros(20).double(), torch.arange(20)
    for place_N in order_ND.T:
        log_p_N += source.marginals_given(x_t)[row_N, place_N, x_ND[row_N, place_N]].double().log()
        x_t[row_N, place_N] = x_ND[row_N, place_N]
    torch.testing.assert_close(log_p_N, source.log_prob(x_ND), rtol=0, atol=1e-9)


def test_single_precision_is_close_on_long_sequences() -> None:
    wide, narrow = (ngram(3, 5, 64, precision) for precision in (torch.float64, torch.float32))
    rng = torch.Generator().manual_seed(0)
    x_BD = wide.sample(40, rng)
    x_BD[torch.rand(x_BD.shape, generator=rng) < torch.rand(40, 1, generator=rng)] = 5
    torch.testing.assert_close(narrow.log_evidence(x_BD), wide.log_evidence(x_BD), rtol=0, atol=1e-4)
    torch.testing.assert_close(narrow.marginals_given(x_BD).double(), wide.marginals_given(x_BD), rtol=0, atol=1e-5)


def test_characters_are_letters_and_single_spaces() -> None:
    state_N = states_of(["The  cat,", "é 42"])
    assert "".join(ALPHABET[state] for state in state_N) == "the cat "


def test_the_table_is_that_of_the_other_model_of_n_grams() -> None:
    share_S = np.arange(1, 28) ** -1.5
    rng = np.random.default_rng(0)
    state_N = rng.choice(27, size=30_000, p=share_S / share_S.sum()).astype(np.uint8)
    table = kneser_ney(state_N, 3)
    assert np.abs(table.sum(-1) - 1).max() < 1e-12 and table.min() > 0
    recent = np.stack(np.meshgrid(*[np.arange(27)] * 3, indexing="ij"), -1).reshape(-1, 3)
    other = NgramModel(state_N[None].astype(np.int64), 27, 3)
    expected = other.next_prob(recent[:, :2], recent[:, 2])
    assert np.abs(table.ravel() - expected).max() < 5e-3  # it counts what stands before the text too


def test_a_text_s_pairs_are_as_counted() -> None:
    state_N = states_of(["ab" * 500 + " "])
    assert kneser_ney(state_N, 2)[1, 2] > 0.99 and kneser_ney(state_N, 1)[1] == pytest.approx(500 / 1001, abs=2e-3)


@pytest.mark.parametrize("order", [1, 6])
def test_an_order_out_of_range_is_named(order: int) -> None:
    with pytest.raises(ValueError, match=rf"source.order must be a whole number from 2 to 5, got {order}"):
        Ngram.of_text(order=order, length=8)


def test_data_without_text_are_named(tmp_path: Path) -> None:
    path = tmp_path / "digits.jsonl"
    path.write_text(json.dumps({"text": "12 34"}))
    with pytest.raises(ValueError, match="data must be text with more than 4 characters from a to z"):
        Ngram.of_text(order=4, length=8, data=str(path))


# Lists

LISTS = ListOperations(tuple(OPERATIONS), items=4, list_length=3)


def every_list() -> torch.Tensor:
    """All lists with an operation, and all answers, right or wrong."""
    size = LISTS.items
    heads = [(size + 1 + o, *one) for o in range(len(OPERATIONS)) for one in itertools.permutations(range(size), 3)]
    answers = torch.cartesian_prod(*[torch.arange(size + 1)] * 3)
    head = torch.tensor(heads)
    return torch.cat([head.repeat_interleave(len(answers), 0), answers.repeat(len(head), 1)], 1)


def test_answers_are_as_enumeration_says() -> None:
    x_ND = every_list()
    p_N = LISTS.log_prob(x_ND).exp()
    assert float(p_N.sum()) == pytest.approx(1, abs=1e-12)
    sampled_ND = LISTS.sample(60, torch.Generator().manual_seed(0))
    assert bool(LISTS.is_right(sampled_ND).all()) and len(LISTS.operation_of(sampled_ND).unique()) == 5
    for hidden in itertools.product([False, True], repeat=3):
        hidden_D = torch.tensor([False] * 4 + list(hidden))
        x_BD = torch.where(hidden_D, LISTS.num_states, sampled_ND)
        weight_BN = p_N * ((x_ND == x_BD[:, None]) | hidden_D).all(2)
        torch.testing.assert_close(LISTS.log_evidence(x_BD), weight_BN.sum(1).log(), rtol=0, atol=1e-10)
        one_NDS = torch.nn.functional.one_hot(x_ND, LISTS.num_states).double()
        expected_BDS = torch.einsum("bn,nds->bds", weight_BN, one_NDS) / weight_BN.sum(1)[:, None, None]
        torch.testing.assert_close(LISTS.marginals_given(x_BD), expected_BDS, rtol=0, atol=1e-10)


def test_a_list_with_an_item_twice_is_none() -> None:
    assert LISTS.log_prob(torch.tensor([[5, 1, 1, 2, 1, 1, 2]])).tolist() == [-math.inf]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_bound_is_that_of_enumeration(operation: str) -> None:
    one = ListOperations((operation,), items=3, list_length=3)
    prompt = [4, 0, 1, 2]
    answers = torch.cartesian_prod(*[torch.arange(4)] * 3)
    x_ND = torch.cat([torch.tensor(prompt).expand(len(answers), -1), answers], 1)
    p_N = (one.log_prob(x_ND) + math.log(6)).exp()
    marginal_DS = one.marginals_given(torch.tensor([[*prompt, 5, 5, 5]]))[0, 4:]
    product_N = marginal_DS[torch.arange(3), answers].prod(1)
    here_N = p_N > 0
    divergence = float((p_N * (p_N / product_N).log())[here_N].sum())
    assert bound(operation, 3).total_correlation == pytest.approx(divergence, abs=1e-12)
    assert bound(operation, 3).accuracy == pytest.approx(float(product_N[here_N].sum()))
    assert bound(operation, 3).answers == int(here_N.sum())


def test_copying_is_free_and_shuffling_is_not() -> None:
    assert bound("copy", 6).total_correlation == bound("replace_one", 6).total_correlation == 0
    assert bound("shuffle", 6).total_correlation == pytest.approx(6 * math.log(6) - math.log(720))


def test_lists_that_cannot_be_are_named() -> None:
    with pytest.raises(ValueError, match="source.operations must be among copy, .*, got 'sort'"):
        ListOperations(("sort",), items=4, list_length=3)
    with pytest.raises(ValueError, match="source.items must be at least list_length = 5, got 4"):
        ListOperations(("copy",), items=4, list_length=5)
    with pytest.raises(ValueError, match="source.list_length must be from 2 to 8, got 9"):
        ListOperations(("copy",), items=9, list_length=9)
    with pytest.raises(ValueError, match="x_t must show the operation and the list"):
        LISTS.marginals_given(torch.full((1, 7), LISTS.num_states))

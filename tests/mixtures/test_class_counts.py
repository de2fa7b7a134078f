import torch

from di4c_lm.data.text.synthetic import MarkovChain
from di4c_lm.mixtures.class_counts import token_classes


def classes_of_chain() -> tuple[torch.Tensor, torch.Tensor]:
    """20 tokens in 4 classes, which follow each other in a circle most of the time; the classes and 2,000 sequences."""
    rng = torch.Generator().manual_seed(0)
    true_S = torch.arange(20) % 4
    weight_SS = 0.05 + (true_S[None] == (true_S[:, None] + 1) % 4).double()
    chain = MarkovChain(
        torch.full((20,), 0.05, dtype=torch.float64), weight_SS / weight_SS.sum(1, keepdim=True), length=16
    )
    return true_S, chain.sample(2000, rng)


def test_classes_that_make_the_distribution_are_found() -> None:
    true_S, tokens = classes_of_chain()
    class_S, log_ratio_LL = token_classes(tokens, 21, 4, torch.Generator().manual_seed(1))
    assert class_S[20] == -1, "never seen"
    for a in range(20):
        same = class_S[:20] == class_S[a]
        assert torch.equal(same, true_S == true_S[a])
    follower_L = log_ratio_LL.argmax(1)
    for a in range(4):
        assert follower_L[class_S[a]] == class_S[(a + 1) % 4]


def test_ratios_are_those_of_the_pairs() -> None:
    """With a class for each token the log-ratios are the pairs' own."""
    _, tokens = classes_of_chain()
    class_S, log_ratio_LL = token_classes(tokens, 20, 20, torch.Generator().manual_seed(0))
    assert len(class_S.unique()) == 20
    pair = tokens[:, :-1].flatten() * 20 + tokens[:, 1:].flatten()
    count = torch.bincount(pair, minlength=400).view(20, 20).double()
    ratio = count / (count.sum(1, keepdim=True) * count.sum(0, keepdim=True) / count.sum())
    own = log_ratio_LL[class_S][:, class_S]
    torch.testing.assert_close(own.double().exp(), ratio, rtol=0.02, atol=0.02)


def test_they_are_repeatable() -> None:
    _, tokens = classes_of_chain()
    one, two = (token_classes(tokens, 20, 4, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1])

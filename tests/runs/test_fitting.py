"""What a configuration trains: a student from its teacher, and the objective around it."""

from pathlib import Path

import torch

from di4c_lm.core import cli
from di4c_lm.data.batches import PackedSource
from di4c_lm.data.text.synthetic import MarkovChain
from di4c_lm.domains.text.settings import Config
from di4c_lm.mixtures.class_head import ClassHead
from di4c_lm.mixtures.latent import is_latent
from di4c_lm.networks.dit import DIT
from di4c_lm.runs.fitting import student_of

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = ("model.hidden_size=16", "model.num_blocks=2", "model.num_heads=2", "data.length=6", "lambda.codebook_size=4")
CHAIN = MarkovChain.random(8, 6, sharpness=2.0, seed=0)


def config(*words: str) -> Config:
    return cli.load([*SMALL, *words], CONFIGS, "train_lm")


def source() -> PackedSource:
    return PackedSource(CHAIN.sample(500, torch.Generator().manual_seed(0)).numpy(), 0)


def teacher() -> DIT:
    torch.manual_seed(0)
    network = DIT(config().model, num_states=9)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return network


def test_by_default_the_trunk_is_frozen_and_the_classes_are_those_of_the_corpus() -> None:
    made, again = (student_of(config(), teacher(), source()) for _ in range(2))
    trained = {name for name, parameter in made.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in made.named_parameters() if is_latent(name)}
    head = made.latent_head
    assert isinstance(head, ClassHead)
    assert bool((head.table.softmax(1).amax(1)[:8] > 0.9).all()), "each token has a class"
    assert bool((head.table[8] == 0).all()), "MASK has none"
    assert head.relation.detach().abs().max().item() > 0.3, "classes of neighbours tell of each other"
    assert all(torch.equal(one, two) for one, two in zip(made.parameters(), again.parameters(), strict=True))
    assert all(p.requires_grad for p in student_of(config("lambda.trunk=train"), teacher(), source()).parameters())


def test_a_second_round_begins_with_the_classes_of_the_first() -> None:
    first = student_of(config(), teacher(), source())
    head = first.latent_head
    assert isinstance(head, ClassHead)
    head.table.data += torch.randn(head.table.shape, generator=torch.Generator().manual_seed(1))
    second = student_of(config(), first, source())
    assert isinstance(second.latent_head, ClassHead) and torch.equal(second.latent_head.table, head.table)

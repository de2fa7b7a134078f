"""How the settings of rounds are made of those of their chain."""

from pathlib import Path

from di4c_lm.core.compose import CONFIGS, compose, compose_rounds
from di4c_lm.domains.text.domain import DOMAIN
from di4c_lm.domains.text.settings import TextSettings
from di4c_lm.objectives.likelihood import Likelihood
from di4c_lm.objectives.mdlm import Mdlm
from di4c_lm.objectives.sdtt import Sdtt
from di4c_lm.runs.folder import run_dir
from di4c_lm.runs.recipe import linked, names

ROOT = Path(__file__).resolve().parents[2]


def chain(*words: str) -> tuple[TextSettings, list[TextSettings]]:
    config = compose(TextSettings, words, CONFIGS, "text")
    return config, compose_rounds(config, words, CONFIGS, "text", run_dir(DOMAIN, config))


def test_the_chains_that_are_shipped_say_what_their_names_say() -> None:
    _, sdtt = chain("experiment=chain_sdtt", "run.dir=x")
    assert names(sdtt) == ["mdlm", "sdtt-1", "sdtt-2", "sdtt-3", "likelihood"]
    assert [one.objective.step for one in sdtt if isinstance(one.objective, Sdtt)] == [1 / 32, 1 / 16, 1 / 8]
    config, di4c = chain("experiment=chain_copula", "run.dir=x", "train.seed=5")
    assert names(di4c) == ["mdlm", "likelihood-1", "likelihood-2"]
    assert [one.train.seed for one in di4c] == [5, 6, 7]
    assert linked(DOMAIN, config, di4c, 2).teacher.path == "x/round_2/student"
    for first in (sdtt[0], di4c[0]):
        assert isinstance(first.objective, Mdlm) and first.optim.kind == "muon", "as the teacher of any run"
        assert (first.objective.times, first.objective.weight_power) == ("bell", 0.0)
    assert isinstance(di4c[1].objective, Likelihood)
    assert all(one.rounds == () for one in di4c)
    _, paper = chain("experiment=paper_sdtt", "run.dir=x")
    assert [one.objective.step for one in paper if isinstance(one.objective, Sdtt)] == [2**k / 1024 for k in range(7)]
    assert [one.teacher.weights for one in paper] == ["ema"] + 6 * ["raw"]
    assert (paper[0].teacher.path, paper[0].data.dataset) == ("kuleshov-group/mdlm-owt", "Skylion007/openwebtext")


def test_words_of_the_command_line_reach_all_rounds_and_give_way_to_theirs() -> None:
    config, rounds = chain(
        "train.steps=9", "run.dir=x", "rounds=[{objective: mdlm, train.steps: 3}, {objective: sdtt, teacher: a/b}]"
    )
    assert [one.train.steps for one in rounds] == [3, 9]
    assert linked(DOMAIN, config, rounds, 1).teacher.path == "a/b", "a teacher that is named is kept"

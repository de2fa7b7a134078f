"""The simulated update: its products against those that are counted, its traffic against laws, and what the doctor says of it."""

import dataclasses
import json
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from di4c_lm.core.compose import CONFIGS, compose
from di4c_lm.data.batches import Batch
from di4c_lm.domains.text.settings import TextSettings
from di4c_lm.mixtures.base import NoMixture
from di4c_lm.networks.dit import DIT
from di4c_lm.processes.masked import MaskedProcess
from di4c_lm.runs.doctor import doctor, plan
from di4c_lm.runs.doctor.simulate import A100, H100, products, simulate, step_time
from di4c_lm.runs.recipe import mixture_of

SMALL = ["model.hidden_size=64", "model.num_heads=2", "model.cond_dim=8", "data.length=32", "data.vocab_size=300"]
NUM_STATES = 301


def config(*words: str) -> TextSettings:
    return compose(TextSettings, [*SMALL, *words], CONFIGS, "text")


def counted(chosen: TextSettings) -> float:
    """Operations of the products of a real step, counted by PyTorch."""
    torch.manual_seed(0)
    sizes = {"num_states": NUM_STATES}
    student: Any = mixture_of(chosen).fresh(DIT, chosen.model, sizes)
    teacher: Any = NoMixture().fresh(DIT, chosen.model, sizes) if chosen.objective.needs_teacher else None
    options = {} if teacher is None else {"teacher": teacher.requires_grad_(False)}
    objective: Any = chosen.objective.build(student, MaskedProcess(NUM_STATES - 1), seed=0, **options)
    number = torch.arange(chosen.train.micro_batch_size)
    x = torch.randint(NUM_STATES - 1, (len(number), chosen.data.length))
    with FlopCounterMode(display=False) as counter:
        objective(Batch(x=x, sample_id=number, epoch=torch.zeros_like(number)))[0].backward()
    return float(counter.get_total_flops())


@pytest.mark.parametrize(
    "words",
    [
        ["objective=mdlm"],
        ["recipe=sequential"],
        ["recipe=copula", "mixture.codebook_size=32"],
        ["recipe=di4c_paper", "objective.num_lambdas=4"],
    ],
    ids=" ".join,
)
def test_products_are_those_that_are_counted(words: list[str]) -> None:
    """Within a quarter: the share of masked positions is a mean, and what is small (times, gates) is left out."""
    chosen = config(*words, "train.micro_batch_size=32")
    found = products(chosen, chosen.model, NUM_STATES)
    assert 0.8 < sum(found.values()) / counted(chosen) < 1.25


def times(*words: str, ranks: int, cluster: Any = None) -> dict[str, float]:
    chosen = config(*words)
    counts = plan.count(chosen, chosen.model, NUM_STATES)
    return step_time(cluster or H100(), chosen, products(chosen, chosen.model, NUM_STATES), counts, ranks)


def test_traffic_by_stage() -> None:
    """Stage 3 sends one and a half times the bytes of the others (Rajbhandari et al. 2020, section 7); one rank sends none."""
    cluster = H100(overlap=0.0, latency_us=0.0)
    sent = [times("objective=mdlm", f"zero.stage={s}", ranks=8, cluster=cluster)["traffic_s"] for s in range(4)]
    assert sent[0] == sent[1] == sent[2] and sent[3] == pytest.approx(1.5 * sent[0])
    assert times("objective=mdlm", ranks=1)["traffic_s"] == 0
    twice = times("objective=mdlm", "zero.stage=2", "train.gradient_accumulation=2", ranks=8, cluster=cluster)
    assert twice["traffic_s"] == pytest.approx(1.5 * sent[0])


def test_what_hides_is_not_waited_for_and_the_network_is_the_narrower() -> None:
    open_, hidden = (times("objective=mdlm", ranks=8, cluster=H100(overlap=o)) for o in (0.0, 1.0))
    assert open_["step_s"] - hidden["step_s"] == pytest.approx(hidden["hidden_s"]) and hidden["hidden_s"] > 0
    one, many = (
        times("objective=mdlm", ranks=n, cluster=H100(overlap=0.0, latency_us=0.0))["traffic_s"] for n in (8, 1024)
    )
    assert many > 5 * one
    slower = times("objective=mdlm", ranks=8, cluster=A100(overlap=0.0))
    assert slower["step_s"] > open_["step_s"]


def test_efficiency_is_against_as_many_single_ranks() -> None:
    chosen = config("recipe=di4c_paper")
    counts, work = plan.count(chosen, chosen.model, NUM_STATES), products(chosen, chosen.model, NUM_STATES)
    rows = simulate(H100(overlap=0.0), chosen, work, counts, (1, 8, 1024))
    assert rows[0]["efficiency"] == 1 and 1 > rows[1]["efficiency"] > rows[2]["efficiency"] > 0
    assert rows[2]["tokens_per_s"] > rows[1]["tokens_per_s"] > rows[0]["tokens_per_s"]
    offloaded = dataclasses.replace(chosen, zero=dataclasses.replace(chosen.zero, stage=1, offload=True))
    with pytest.raises(ValueError, match="zero.offload must be false where a step is simulated"):
        simulate(H100(), offloaded, work, counts, (1,))


def test_the_doctor_simulates_the_machine_at_hand(monkeypatch, capsys) -> None:
    monkeypatch.setattr(
        doctor, "describe_machine", lambda run, cache: {"disk": {"run": 9.0}, "memory": 9.0, "gpus": []}
    )
    doctor.main([*SMALL, "simulate=[1,2]", "cluster=here", "trial_steps=0", "--json"])
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["ranks"] for row in report["simulation"]] == [1, 2] and report["simulation"][0]["products_s"] > 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["simulate=[0]"], "simulate must be numbers of ranks, each at least 1"),
        (["cluster=h100"], "simulate"),
        (["simulate=[1]", "cluster=b200"], "cluster"),
        (["simulate=[1]", "cluster.overlap=2"], "cluster.overlap"),
    ],
)
def test_bad_settings_end_with_status_2(words, said, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        doctor.main(words)
    assert ended.value.code == 2 and said in capsys.readouterr().err

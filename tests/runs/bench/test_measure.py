import torch
from torch import nn

from di4c_lm.runs.bench.measure import PeakMemory, Stopwatch, measure_step, watch_networks

CPU = torch.device("cpu")


def test_a_phase_ends_where_the_next_begins() -> None:
    watch = Stopwatch(CPU)
    for name in ("a", "b", "a"):
        watch.start(name)
    assert watch.phase == "a"
    assert set(watch.stop()) == {"a", "b"}
    assert watch.phase == "" and watch.stop() == {}


def test_the_peak_is_what_was_held_and_given_back() -> None:
    memory = PeakMemory(CPU)
    held = torch.ones(2**24)
    del held
    assert 2**26 / 2**30 * 0.9 < memory.peak() - memory.base < 1


def test_the_phases_of_a_step_are_told_by_the_calls_of_its_networks() -> None:
    student, teacher, watch, seen = nn.Linear(2, 2), nn.Linear(2, 2), Stopwatch(CPU), []
    watch_networks(student, teacher, watch)

    def loss() -> torch.Tensor:
        for network, gradient in (
            (teacher, False),
            (student, False),
            (student, True),
            (teacher, False),
            (student, True),
        ):
            with torch.set_grad_enabled(gradient):
                out = network(torch.ones(2))
            seen.append(watch.phase)
        return out.sum()

    phases = ("teacher sampling", "student on x_u", "distillation", "loss", "backward", "never")
    found = measure_step(student, loss, watch, phases, 2)
    assert seen == ["teacher sampling", "student on x_u", "loss", "distillation", "distillation"] * 2
    assert found["phases"]["never"] == 0 and min(found["phases"][name] for name in phases[:5]) > 0
    assert student.weight.grad is not None
    assert found["value"] == float(student(torch.ones(2)).sum().detach())

"""What this machine offers, what a run will take, and whether it can go:

    di4c doctor [key=value ...] [ranks=2] [trial_steps=3] [simulate=[1,8,1024] cluster=h100] [--json]
    di4c doctor --nproc 2 zero.stage=2 ...

The other keys are those of `di4c train`. `ranks` is the number of ranks to plan for (under a launcher: its own), all on machines
like this one with one rank a GPU, or all on this one without GPUs. `simulate` names numbers of ranks on which the time of an update is
computed from shapes and speeds, which with `cluster=here` are measured first.
`trial_steps` real updates are timed, after a first one; 0 skips that,
and then nothing is downloaded but a pretrained teacher. Exit status: 0 the run can go, 1 it cannot, for the reasons given, 2 bad settings.
"""

import json
import logging
import os
from collections.abc import Sequence
from typing import Any

from di4c_lm.core.compose import parse
from di4c_lm.core.settings import Ints, at_least, check, choice, section, setting
from di4c_lm.core.terminal import errors_end
from di4c_lm.domains.text.domain import DOMAIN
from di4c_lm.domains.text.settings import TextSettings
from di4c_lm.networks.decoder import DecoderConfig
from di4c_lm.networks.dit import DitConfig
from di4c_lm.runs.command import launch_if_asked, own_arguments
from di4c_lm.runs.doctor.machine import describe_machine
from di4c_lm.runs.doctor.simulate import CLUSTERS, H100, Here, measured, products, simulate
from di4c_lm.runs.folder import parse_run
from di4c_lm.training.distributed import World, init_distributed, set_threads

Shape = tuple[DitConfig | DecoderConfig, int]


@section
class Settings:
    """What this machine offers, what a run will take, and whether it can go; the other keys are those of the run."""

    ranks: int | None = setting(None, "ranks to plan for; null: those of the launcher, or one")
    trial_steps: int = setting(3, "updates of the run to time, after a first one; 0: no trial")
    simulate: Ints = setting(
        (), "numbers of ranks on which an update is simulated, such as [1,8,64,1024]; none: no simulation"
    )
    cluster: Any = choice(CLUSTERS, H100(), "what the simulation's ranks are: h100, a100, or here, which is measured")
    json: bool = setting(False, "print the report as one object in place of the text")

    def unused(self) -> dict[str, str]:
        """The cluster of no simulation."""
        return {} if self.simulate else {"cluster": "where simulate=[]"}

    def __post_init__(self) -> None:
        check(
            all(ranks >= 1 for ranks in self.simulate), "simulate", self.simulate, "numbers of ranks, each at least 1"
        )
        check(self.ranks is None or self.ranks >= 1, "ranks", self.ranks, "at least 1")
        at_least(self, 0, "trial_steps")


def shape_of(config: TextSettings) -> Shape:
    """The networks' shape, and S, or of a decoder the rows of its vocabulary; `ValueError` and `ConnectionError` where it cannot be had.

    (A tokenizer that the run would train has at most `data.vocab_size` entries, and MASK.)
    """
    from di4c_lm.data.text.tokenizers import load_tokenizer

    if config.teacher.kind == "pretrained":
        from di4c_lm.checkpoints.load import read_checkpoint

        teacher, path = config.teacher, config.teacher.path
        assert path is not None
        found = read_checkpoint(path, revision=teacher.revision, weights=teacher.weights, length=config.data.length)
        return found.model, found.sizes.get("num_rows", found.sizes["num_states"])
    if config.data.tokenizer == "train":
        return config.model, config.data.vocab_size + 1
    return config.model, len(load_tokenizer(config.data, [], config.run.cache))


def plan(config: TextSettings, shape: Shape, ranks: int, *, on_gpu: bool) -> dict[str, Any]:
    """What the run will take; `shape` is that of `shape_of`."""
    from di4c_lm.runs.doctor.plan import activation_memory, count, disk_needed, memory_table, tokens_per_step

    model, num_states = shape
    counts = count(config, model, num_states)
    activations = activation_memory(config, model, num_states, on_gpu=on_gpu)
    return {
        "ranks": ranks,
        "parameters": counts,
        "tokens_per_step": tokens_per_step(config, ranks),
        "way": f"{config.zero.stage}{'+offload' if config.zero.offload else ''}",
        "memory": memory_table(config, counts, activations, ranks),
        "activations": {name: value / 2**30 for name, value in activations.items()},
        "disk": disk_needed(config, counts) / 2**30,
    }


def reasons_against(machine: dict[str, Any], planned: dict[str, Any], *, on_gpu: bool) -> list[str]:
    """Why the run cannot go on this machine, as far as its settings tell."""
    found = []
    free, needed = machine["disk"]["run"], planned["disk"]
    if free < needed:
        found.append(
            f"the disk of the run's folder has {free:.2f} GiB free, its checkpoints and export take {needed:.2f}"
        )
    memory, ranks = planned["memory"][planned["way"]], planned["ranks"]
    local = ranks if not on_gpu else min(ranks, len(machine["gpus"]))
    of_card, on_host = memory["total"] - memory["on_host"], memory["on_host"]
    if on_gpu and of_card > (card := min(gpu["memory"] for gpu in machine["gpus"])):
        found.append(f"a rank takes {of_card:.2f} GiB of its GPU, which has {card:.2f}; see the table for other stages")
    host = local * (on_host if on_gpu else memory["total"])
    if host > machine["memory"]:
        found.append(
            f"{local} rank(s) take {host:.2f} GiB of this machine's memory, of which {machine['memory']:.2f} is free"
        )
    return found


def print_report(report: dict[str, Any]) -> None:
    """The same as the JSON, for people."""
    machine, planned, trial = report["machine"], report.get("plan"), report.get("trial")
    print(f"machine     {machine['host']}: {machine['cores']} cores, {machine['memory']:.1f} GiB of memory free")
    print(f"torch       {machine['torch']}, Python {machine['python']}, CUDA {machine['cuda'] or 'none'}")
    print("GPUs        " + (", ".join(f"{g['name']} {g['memory']:.0f} GiB" for g in machine["gpus"]) or "none"))
    print(f"flash-attn  {machine['flash_attn'] or 'absent (PyTorch attention serves)'}")
    can = [name for name, works in machine["deepspeed_ops"].items() if works]
    print(
        f"DeepSpeed   {machine['deepspeed']}; operators that can be built here (none is needed): {', '.join(can) or 'none'}"
    )
    print(f"hub         {machine['hub']}")
    print(f"disk        run {machine['disk']['run']:.1f} GiB free, cache {machine['disk']['cache']:.1f} GiB free")
    if planned:
        counts, parts = planned["parameters"], planned["activations"]
        print(f"parameters  teacher {counts['teacher']:,}, student {counts['student']:,} (λ path {counts['latent']:,})")
        print(f"step        {planned['tokens_per_step']:,} tokens over {planned['ranks']} rank(s)")
        print("activations " + ", ".join(f"{name} {value:.3f} GiB" for name, value in parts.items()) + " a micro batch")
        print(f"disk needed {planned['disk']:.2f} GiB for checkpoints and export")
        columns = list(next(iter(planned["memory"].values())))
        print(f"\nGiB of a rank, by ZeRO stage{'':2}" + "".join(f"{name:>12}" for name in columns))
        for way, parts in planned["memory"].items():
            mark = "*" if way == planned["way"] else " "
            print(f"  {mark} {way:26}" + "".join(f"{value:12.3f}" for value in parts.values()))
        print()
    if simulated := report.get("simulation"):
        print("An update, simulated" + "".join(f"{name:>14}" for name in simulated[0]))
        for row in simulated:
            print(f"{'':20}" + "".join(f"{value:14,.4g}" for value in row.values()))
        print()
    if trial:
        print(
            f"trial       {trial['steps']} updates on {trial['ranks']} rank(s): {trial['seconds_per_step']:.3f} s each, "
            f"{trial['seconds_per_1000_steps'] / 60:.1f} min for 1,000, {trial['tokens_per_s']:,.0f} tokens/s, "
            f"peak {trial['peak_memory']:.2f} GiB of rank 0"
        )
    for reason in report["reasons"]:
        print(f"cannot go: {reason}")
    print("the run can go" if not report["reasons"] else f"the run cannot go: {len(report['reasons'])} reason(s)")


def simulation(
    config: TextSettings, settings: Settings, shape: Shape, counts: dict[str, int], world: World
) -> list[dict[str, float]]:
    """An update on each of `settings.simulate` ranks. All ranks call it. Raises `ValueError` for offload."""
    cluster = measured(config, shape[0].hidden_size, world) if isinstance(settings.cluster, Here) else settings.cluster
    return simulate(cluster, config, products(config, *shape), counts, settings.simulate)


def examine(config: TextSettings, settings: Settings) -> dict[str, Any]:
    """Machine, plan, simulation, trial, and the reasons against the run. All ranks call it."""
    from di4c_lm.runs.folder import run_dir
    from di4c_lm.runs.preflight import faults

    machine = describe_machine(run_dir(DOMAIN, config), config.run.cache)
    report: dict[str, Any] = {"machine": machine, "reasons": faults(DOMAIN, config)}
    if report["reasons"]:
        return report
    try:
        world = init_distributed(config.run.device)
        on_gpu = world.device.type == "cuda"
        shape = shape_of(config)
        report["plan"] = plan(config, shape, settings.ranks or world.size, on_gpu=on_gpu)
        if settings.simulate:
            set_threads(config.run.threads)
            report["simulation"] = simulation(config, settings, shape, report["plan"]["parameters"], world)
        report["reasons"] += reasons_against(machine, report["plan"], on_gpu=on_gpu)
        if settings.trial_steps and not report["reasons"]:
            from di4c_lm.runs.doctor.trial import try_out

            report["trial"] = try_out(config, world, settings.trial_steps)
    except (ValueError, OSError, RuntimeError) as error:
        report["reasons"].append(str(error) or type(error).__name__)
    return report


def main(argv: Sequence[str]) -> int:
    """Examine and print, on rank 0; the exit status."""
    if {"-h", "--help"} & {*argv}:
        print(__doc__)
    with errors_end():
        own, run = own_arguments(Settings, launch_if_asked(("doctor",), argv))
    settings = parse(Settings, own, program="di4c doctor")
    config, rounds = parse_run(DOMAIN, run, program="di4c doctor")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    report = examine(rounds[0] if rounds else config, settings)
    if os.environ.get("RANK", "0") == "0":
        if settings.json:
            print(json.dumps(report))
        else:
            print_report(report)
    return 1 if report["reasons"] else 0

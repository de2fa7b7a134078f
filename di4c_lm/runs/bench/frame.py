"""The frame of a benchmark: settings from the command line, each way in processes of its own, a table, one line of JSON."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from di4c_lm.core.compose import parse
from di4c_lm.core.settings import check, fields, section, setting
from di4c_lm.core.terminal import errors_end

if TYPE_CHECKING:
    import torch

S = TypeVar("S", bound="BenchSettings")
Results = dict[str, dict[str, Any]]  # by way


@section
class MachineSettings:
    """Where a benchmark runs, and what it prints."""

    threads: int = setting(2, "CPU threads of each process")
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "cpu, cuda, or auto: cuda where there is a GPU")
    json: bool = setting(False, "print the results as one object on the last line")

    def torch_device(self) -> "torch.device":
        """CUDA where there is one, unless another is asked for."""
        import torch

        automatic = "cuda" if torch.cuda.is_available() else "cpu"
        return torch.device(automatic if self.device == "auto" else self.device)


@section
class BenchSettings(MachineSettings):
    """What every benchmark that compares ways may be told."""

    repeat: int = setting(1, "measurements of each way; the fastest counts")
    ways: str = setting("", "ways to measure, with commas between; empty: all that are compared by default")

    WAYS: ClassVar[tuple[str, ...]] = ()
    BY_DEFAULT: ClassVar[tuple[str, ...]] = ()  # absent: all WAYS

    @property
    def chosen(self) -> list[str]:
        """The ways that are measured, in order. Raises `SettingError` for one that there is not."""
        chosen = self.ways.split(",") if self.ways else list(self.BY_DEFAULT or self.WAYS)
        check(set(chosen) <= set(self.WAYS), "ways", self.ways, f"some of {','.join(self.WAYS)}")
        return chosen

    @property
    def processes(self) -> int:
        """That measure one way together."""
        return 1


def run_benchmark(
    program: str,
    settings_class: type[S],
    measure: Callable[[str, S], Mapping[str, Any]],
    argv: Sequence[str],
    *,
    ratios: Sequence[str] = (),
    command: Sequence[str] = (),
) -> int:
    """Run the benchmark `program` with the arguments `argv`; `--json` prints one object on the last line, the results of `measure` by way.

    `measure(way, settings)` is called in processes of its own, which `command --way <way>` starts; by default that is `python -m di4c_lm`
    with the program's words. Where two ways are compared the table shows their
    ratio, and the JSON holds those of `ratios`. Bad input ends with exit status 2.
    """
    way, rest = (argv[1], argv[2:]) if argv[:1] == ["--way"] else ("", argv)
    settings = parse(settings_class, rest, program=program)
    with errors_end():
        for name, one in fields(settings_class).items():
            if type(one.default) is int and one.default > 0:
                check(getattr(settings, name) > 0, name, getattr(settings, name), "at least 1")
        ways = settings.chosen
    if way:
        _measure_here(way, settings, measure)
    command = command or (sys.executable, "-m", "di4c_lm", *program.split()[1:])
    results = {way: run_apart([*command, "--way", way, *rest], way, settings) for way in ways}
    print_table(results)
    if settings.json:
        both = len(ways) == 2 and {"ratio": {name: _ratio([results[way][name] for way in ways]) for name in ratios}}
        print(json.dumps({**results, **(both if both and ratios else {})}))
    return 0


def run_apart(command: Sequence[str], way: str, settings: BenchSettings, *, count: int = 0) -> dict[str, Any]:
    """What the first of a way's `count` processes (0: those of `settings`) prints on its last line; ends the program if one fails."""
    from di4c_lm.training.distributed import free_port

    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    count = count or settings.processes
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)} | place for rank in range(count)]
    threads = {"OMP_NUM_THREADS": str(settings.threads)}
    started = [
        subprocess.Popen(
            list(command),
            env=os.environ | threads | (rank if count > 1 else {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ranks
    ]
    ended = [process.communicate() for process in started]
    for process, (_, errors) in zip(started, ended, strict=True):
        if process.returncode == 2:
            sys.stderr.write(errors[-2000:])
            raise SystemExit(2)
        if process.returncode:
            raise SystemExit(f"{way} ended with exit status {process.returncode}\n{errors[-2000:]}")
    return json.loads(ended[0][0].splitlines()[-1])


def print_table(results: Results) -> None:
    """One column a way, and the ratio of two."""
    flat = {way: dict(_flat(found)) for way, found in results.items()}
    rows = list(dict.fromkeys(name for found in flat.values() for name in found))
    width = max(map(len, rows))
    print(f"{'':{width}}" + "".join(f"{way:>16}" for way in flat) + ("           ratio" if len(flat) == 2 else ""))
    for row in rows:
        values = [found.get(row) for found in flat.values()]
        shown = "".join(f"{'' if value is None else _number(value):>16}" for value in values)
        print(f"{row:{width}}{shown}" + (f"{_ratio(values):16.3f}" if len(values) == 2 and None not in values else ""))


def _number(value: float | int) -> str:
    """With three decimals, or of what is too small for them the power of ten."""
    return f"{value:,.3f}" if value == 0 or abs(value) >= 1e-3 else f"{value:.1e}"


def _measure_here(way: str, settings: S, measure: Callable[[str, S], Mapping[str, Any]]) -> None:
    import torch

    if settings.torch_device().type == "cpu":
        torch.set_num_threads(settings.threads)
    with errors_end():
        print(json.dumps(measure(way, settings)), flush=True)
    os._exit(0)  # native threads of the collectives' libraries may outlive the interpreter


def _flat(found: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in found.items():
        if isinstance(value, Mapping):
            yield from _flat(value)
        else:
            yield name, value


def _ratio(values: Sequence[Any]) -> float:
    return values[0] / values[1] if values[1] else float("nan")

"""What a run gained: generative perplexity and sample entropy of its teacher and student. `--help` lists the keys."""

import dataclasses
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from di4c_lm.cli import fail, parse_words
from di4c_lm.domains.text import TextModel, load_run
from di4c_lm.metrics.gen_ppl import measure, measure_conditional
from di4c_lm.metrics.judge import load_judge
from di4c_lm.metrics.publish import publish
from di4c_lm.metrics.report import table
from di4c_lm.metrics.runs import find_run
from di4c_lm.metrics.settings import GenPplConfig


def main(argv: Sequence[str]) -> None:
    config = parse_words(GenPplConfig, argv, "eval/gen_ppl.py")
    try:
        evaluate(config)
    except ValueError as error:
        fail(str(error))


def evaluate(config: GenPplConfig) -> None:
    """Samples, judges, writes the report and prints it."""
    folder = find_run(config.run, config.outputs)
    device = choose_device(config.device)
    run = load_run(folder)
    models = {"teacher": run.teacher, "student": run.student}
    for model in models.values():
        model.denoiser.to(device)
    judge = load_judge(config.judge or run.judge, device=device)
    print(f"run {folder}, judge {judge.name}, {device}")
    common = {
        "tokenizer": run.student.tokenizer,
        "judge": judge,
        "config": config.evaluation(),
        "scoring": config.scoring(),
    }
    prompting = None
    if config.conditional:
        prompting = config.prompting().fit(run.student.length)
        samplers = {name: partial(continue_prompts, model, config.batch_size) for name, model in models.items()}
        measurement = measure_conditional(samplers, run.validation, prompting=prompting, **common)
    else:
        samplers = {name: partial(draw, model, config.batch_size) for name, model in models.items()}
        measurement = measure(samplers, run.validation, **common)
    paths = publish(
        measurement,
        Path(config.report) if config.report else folder / "report",
        settings=dataclasses.asdict(config),
        checkpoints=run.checkpoints,
        tokenizer=run.student.tokenizer,
        length=run.student.length,
        judge=judge,
        scoring=config.scoring(),
        seed=config.seed,
        model_dtype=next(run.student.denoiser.parameters()).dtype,
        prompting=prompting,
    )
    print(table(measurement.rows, measurement.comparisons))
    print("\n".join(f"{kind:4s} {path}" for kind, path in paths.items()))


def choose_device(wanted: str) -> str:
    """`auto`: the GPU if there is one. Raises `ValueError` for a GPU that is not there."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError("device='cuda' is impossible: no GPU is visible; allowed are auto, cpu")
    return "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"


def draw(model: TextModel, batch_size: int, num_samples: int, steps: int, seed: int) -> tuple[torch.Tensor, float]:
    """Unconditional samples."""
    return model.sample(num_samples, steps, seed=seed, batch_size=batch_size)


def continue_prompts(
    model: TextModel, batch_size: int, prompts: torch.Tensor, steps: int, seed: int
) -> tuple[torch.Tensor, float]:
    """A continuation of each prompt."""
    return model.sample(len(prompts), steps, seed=seed, batch_size=batch_size, prompts=prompts)


if __name__ == "__main__":
    main(sys.argv[1:])

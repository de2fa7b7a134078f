"""The lm-evaluation-harness's own side: its model interface over a `Scorer`, and its results as rows."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, final

from lm_eval.api.model import LM
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager

from di4c_lm.measure.flow import Row
from di4c_lm.measure.text.harness import Scorer


@final
class HarnessModel(LM):
    """A `Scorer` as a model of the lm-evaluation-harness."""

    def __init__(self, scorer: Scorer) -> None:
        super().__init__()
        self._scorer = scorer

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """See `Scorer.log_likelihoods`."""
        return self._scorer.log_likelihoods([request.args for request in requests])

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """See `Scorer.rolling`."""
        return self._scorer.rolling([request.args[0] for request in requests])

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """See `Scorer.continuations`."""
        return self._scorer.continuations([request.args for request in requests])


def evaluated(
    scorers: Mapping[str, Scorer],
    tasks: Sequence[str],
    *,
    include: str | None,
    limit: int | None,
    num_fewshot: int,
    seed: int,
) -> list[Row]:
    """Rows of model, task, metric, value, error and examples. Raises `ValueError` for a task that there is not."""
    manager = _manager(tasks, include)
    seeds: dict[str, Any] = {f"{of}random_seed": seed for of in ("", "numpy_", "torch_", "fewshot_")}
    rows: list[Row] = []
    for model, scorer in scorers.items():
        results: Any = simple_evaluate(
            HarnessModel(scorer),
            tasks=list(tasks),
            num_fewshot=num_fewshot or None,
            limit=limit,
            task_manager=manager,
            log_samples=False,
            bootstrap_iters=1000,
            **seeds,
        )
        for task, of_task in results["results"].items():
            examples = results["n-samples"].get(task, {}).get("effective")
            rows += [{"model": model, "task": task, **row, "examples": examples} for row in _metrics(of_task)]
    return rows


def _manager(tasks: Sequence[str], include: str | None) -> TaskManager:
    """Of the tasks in the folder `include` alone, where they are enough: those of the package take long to list."""
    manager = TaskManager(include_path=include, include_defaults=include is None)
    if include is not None and not {*tasks} <= {*manager.all_tasks}:
        manager = TaskManager(include_path=include)
    absent = [task for task in tasks if task not in manager.all_tasks]
    if absent:
        said = ", ".join(absent)
        raise ValueError(f"tasks must be names of tasks of lm_eval, or of the folder `include`, got {said}")
    return manager


def _metrics(of_task: Mapping[str, Any]) -> Iterator[Row]:
    """The metrics among a task's results, which are called <metric>,<filter>, each beside its standard error."""
    for key, value in of_task.items():
        metric, comma, kind = key.partition(",")
        if comma and not metric.endswith("_stderr") and isinstance(value, int | float):
            error = of_task.get(f"{metric}_stderr,{kind}")
            yield {"metric": metric, "value": float(value), "error": error if isinstance(error, float) else None}

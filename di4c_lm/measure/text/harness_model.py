"""The lm-evaluation-harness's own side: its model interface over a `Scorer`, and its results as rows."""

from collections.abc import Sequence
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
    scorer: Scorer, tasks: Sequence[str], *, include: str | None, limit: int | None, num_fewshot: int, seed: int
) -> list[Row]:
    """Rows of task, metric, value, error and examples. Raises `ValueError` for a task that there is not."""
    manager = TaskManager(include_path=include)
    absent = [task for task in tasks if task not in manager.all_tasks]
    if absent:
        raise ValueError(
            f"tasks must be names of tasks of lm_eval, or of the folder `include`, got {', '.join(absent)}"
        )
    results: Any = simple_evaluate(
        HarnessModel(scorer),
        tasks=list(tasks),
        num_fewshot=num_fewshot or None,
        limit=limit,
        task_manager=manager,
        log_samples=False,
        bootstrap_iters=1000,
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
        fewshot_random_seed=seed,
    )
    rows = []
    for task, of_task in results["results"].items():
        for key, value in of_task.items():
            metric, comma, kind = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = of_task.get(f"{metric}_stderr,{kind}")
            examples = results["n-samples"].get(task, {}).get("effective")
            spread = error if isinstance(error, float) else None
            rows.append({"task": task, "metric": metric, "value": float(value), "error": spread, "examples": examples})
    return rows

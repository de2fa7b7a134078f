"""Measure the models of a run: `di4c eval <what> [run=<dir>] [key=value ...]`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from di4c_lm.core.compose import compose
from di4c_lm.core.files import read_json
from di4c_lm.core.settings import check


@dataclass(frozen=True)
class Evaluation:
    """One that `di4c eval` knows: its settings and the function that measures by them, each as `module:name`."""

    help: str
    settings: str
    work: str
    said: tuple[str, ...] = ()  # before the arguments

    def settings_class(self) -> type[Any]:
        """The section of its settings."""
        return _found(self.settings)


_RESULTS = (
    "gen_ppl",
    "responses",
    "report",
    "harness",
    "images",
)  # evaluations that leave <name>.json in a run's report
_CONFIG, _SUITE = "di4c_lm.measure.text.suite:ReportConfig", "di4c_lm.domains.text.domain:suite"
EVALUATIONS = {
    "gen_ppl": Evaluation(
        "generative perplexity and entropy of a text run's models, beside the validation set",
        "di4c_lm.measure.text.gen_ppl:GenPplConfig",
        "di4c_lm.domains.text.domain:gen_ppl",
    ),
    "compare": Evaluation(
        "generative perplexity and entropy of several models, such as the rounds of a chain, in one table",
        "di4c_lm.measure.text.gen_ppl:CompareConfig",
        "di4c_lm.domains.text.domain:compare",
    ),
    "responses": Evaluation(
        "held-out responses given their prompts, bounded, and prompts continued, of a run on records with prompts",
        "di4c_lm.measure.text.responses:ResponsesConfig",
        "di4c_lm.domains.text.domain:responses",
    ),
    "report": Evaluation("every part of the evaluation of a text run, with canaries, as one page", _CONFIG, _SUITE),
    "brier": Evaluation(
        "BrierLM: how well held-out text is continued and filled in, by samples alone, beside counting",
        _CONFIG,
        _SUITE,
        ("parts=[brier]",),
    ),
    "frontier": Evaluation(
        "generative perplexity against entropy, temperature swept: models compared at the same entropy",
        _CONFIG,
        _SUITE,
        ("parts=[frontier]",),
    ),
    "likelihood": Evaluation(
        "likelihood of validation and zero-shot text, and last words", _CONFIG, _SUITE, ("parts=[likelihood]",)
    ),
    "diversity": Evaluation(
        "diversity of the samples beside the validation set", _CONFIG, _SUITE, ("parts=[fluency,diversity]",)
    ),
    "distribution": Evaluation(
        "distance of the samples from the validation set, and from the teacher's own, one position a call",
        _CONFIG,
        _SUITE,
        ("parts=[distribution,teacher]",),
    ),
    "mixture": Evaluation("what the λ of a mixture student carries", _CONFIG, _SUITE, ("parts=[mixture]",)),
    "cost": Evaluation("what sampling costs", _CONFIG, _SUITE, ("parts=[cost]",)),
    "harness": Evaluation(
        "tasks of the lm-evaluation-harness: multiple choice, likelihood and generation",
        "di4c_lm.measure.text.harness:HarnessConfig",
        "di4c_lm.domains.text.domain:harness",
    ),
    "images": Evaluation(
        "FID, Inception Score, precision, recall, density and coverage of an image run, beside real images",
        "di4c_lm.measure.images.report:ImageReportConfig",
        "di4c_lm.domains.images:images",
    ),
    "compare_reports": Evaluation(
        "result files side by side, refused where their numbers do not compare",
        "di4c_lm.measure.render.manifest:CompareReportsConfig",
        "di4c_lm.measure.render.manifest:compare_results",
    ),
}


def main(argv: Sequence[str]) -> int:
    """Measure what the first word names, write the report, print its table; bad input ends with exit status 2."""
    from di4c_lm.runs.command import run_command

    name = argv[0]
    one = EVALUATIONS[name]
    return run_command(f"di4c eval {name}", one.settings_class(), _found(one.work), [*one.said, *argv[1:]])


def evaluate(
    run: Path | str, settings: Mapping[str, Any] | None = None, /, *, what: str | None = None, **more: Any
) -> dict[str, Any]:
    """Measure the models of a run, write its report, and return what the report's JSON file holds.

    Examples:
        >>> found = di4c_lm.evaluate("outputs/stories", steps=[1, 2], num_samples=8)
        >>> sorted({row["model"] for row in found["rows"]})
        ['data', 'ngram_2', 'ngram_3', 'ngram_5', 'student', 'teacher', 'token_bigram']

    Args:
        run: the run's folder.
        settings: by key, as `di4c eval <what> --help` lists them.
        what: gen_ppl, responses, report, harness or images; absent, gen_ppl of text, images of images.
        more: settings whose keys have no dot.

    Returns:
        `manifest`, `rows` (one a model and number of steps) and `comparisons`; of the harness `settings`, `checkpoints` and `rows`.

    Raises:
        ValueError: no such run or key, a value that does not fit.
    """
    from di4c_lm.domains.domain import FinishedRun

    what = what or ("gen_ppl" if FinishedRun.read(Path(run)).domain.name == "text" else "images")
    check(what in _RESULTS, "what", what, f"one of {', '.join(_RESULTS)}")
    one = EVALUATIONS[what]
    chosen = compose(one.settings_class(), [*(settings or {}).items(), *more.items(), ("run", str(run))])
    _found(one.work)(chosen)
    name = f"{what}_conditional" if getattr(chosen, "conditional", False) else what
    return read_json(chosen.folder(Path(run)) / f"{name}.json")


def _found(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)

"""A run on records with prompts: held-out responses bounded given their prompts, which are not scored, and prompts continued."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from di4c_lm.core.fingerprints import fingerprint
from di4c_lm.core.settings import at_least, section, setting, to_dict
from di4c_lm.measure.flow import Row, columns, difference, nfe_of
from di4c_lm.measure.render.files import Layout, with_page, write_report
from di4c_lm.measure.render.manifest import manifest
from di4c_lm.measure.render.pictures import Panel, training_curves
from di4c_lm.measure.render.tables import LEAD, NFE, Column, table, with_differences
from di4c_lm.measure.settings import Measurement, device_of
from di4c_lm.measure.statistics.bootstrap import Resampled, mean
from di4c_lm.measure.text.likelihood import step_bound
from di4c_lm.measure.text.perplexity import token_weighted
from di4c_lm.measure.text.samples import TextRun, sampler_of
from di4c_lm.training.metric_logger import read_metrics

_EXAMPLES = 2  # shown of a model and step count
BOUND = Panel("response_ppl", "perplexity of responses, at most", "given their prompts", log=True)
LAYOUT = Layout(
    data="validation set",
    panels=(BOUND, Panel("tokens", "tokens of a response", "the validation set is the mark")),
    headings={"response_ppl": "perplexity, at most", "tokens": "tokens of a response"},
    details={"nats": "nats a response", "exact": "equal to the record's", "num_samples": "samples"},
)


@section
class ResponsesConfig(Measurement):
    """Held-out responses given their prompts, bounded, and prompts continued, of a run on records with prompts."""

    seed: int = setting(0, "random seed of sampling, of the choice of records and of the bootstrap")
    draws: int = setting(2, "steps of a sampler whose part of the bound is computed for each record")
    lambdas: int = setting(16, "samples of λ, where it is not enumerated")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 2, "num_samples")
        at_least(self, 0, "seed")
        at_least(self, 1, "draws", "lambdas")


def responses_report(run: TextRun, settings: ResponsesConfig) -> str:
    """Measure the models of `run`, write `report/responses.{json,csv,png,html}`, and return the table.

    A row holds model, steps, nfe; `response_ppl`, exp of the nats a token of the bound that the sampler of so many uniform steps has on
    held-out responses given their prompts, over the tokens that are learned, EOS that fills up among them; `nats`, the same a response;
    `tokens` of a sampled response up to its first EOS, `exact`, the share of samples that are the record's own response. The row
    "data" is of the records. Intervals are of a bootstrap over records. Raises `ValueError` for a run without prompts or a GPU that is
    not there.
    """
    if run.parts is None:
        raise ValueError(f"run must be one on data.records=prompt or chat, got {run.folder}")
    device = device_of(settings.device)
    order_N = torch.randperm(len(run.validation), generator=torch.Generator().manual_seed(settings.seed))
    chosen_N = order_N[: settings.num_samples]
    x_ND, parts_ND, tokenizer = run.validation[chosen_N], run.parts[chosen_N], run.student.tokenizer
    resampling: dict[str, Any] = {"resamples": settings.bootstrap, "seed": settings.seed}
    learned_N = (parts_ND == 2).sum(1).double().numpy()
    own_N = _lengths(x_ND, parts_ND, tokenizer.eos_token_id)
    rows: list[Row] = [
        _row("data", 0, 0.0, {"tokens": Resampled(mean, (own_N.double().numpy(),))}, resampling, len(x_ND))
    ]
    shown: list[Row] = []
    found: dict[tuple[str, int], dict[str, Resampled]] = {}
    for name, model in run.models.items():
        model.denoiser.to(device)
        sampler = sampler_of(model, settings.batch_size, **run.how.get(name, {}))
        prompts_ND = torch.where(parts_ND == 3, x_ND, model.mask_id)
        for steps in settings.steps:
            how: dict[str, Any] = {"steps": steps, "draws": settings.draws, "lambdas": settings.lambdas}
            how |= {"seed": settings.seed, "batch_size": settings.batch_size}
            nats_N = step_bound(model, x_ND, parts_ND=parts_ND, **how).numpy()
            tokens_ND, nfe = sampler(prompts_ND, steps, settings.seed)
            tokens_ND = tokens_ND.cpu()
            length_N = _lengths(tokens_ND, parts_ND, tokenizer.eos_token_id)
            exact_N = ((tokens_ND == x_ND) | (parts_ND != 2)).all(1)
            found[name, steps] = {
                "response_ppl": Resampled(token_weighted, (nats_N, learned_N)),
                "nats": Resampled(mean, (nats_N,)),
                "tokens": Resampled(mean, (length_N.double().numpy(),)),
                "exact": Resampled(mean, (exact_N.double().numpy(),)),
            }
            rows.append(_row(name, steps, nfe, found[name, steps], resampling, len(x_ND)))
            shown += _examples(name, steps, tokens_ND, parts_ND, length_N, tokenizer)
    names = list(run.models)
    comparisons = [
        difference("nats", {"of": b, "minus": a, "steps": n}, found[b, n]["nats"], found[a, n]["nats"], **resampling)
        for a, b in zip(names, names[1:], strict=False)
        for n in settings.steps
    ]
    facts = manifest(
        config={"report": to_dict(settings), "run": run.settings},
        checkpoints=run.paths,
        nfe=nfe_of(rows),
        dtypes={"noise": "float64", "model": str(next(run.student.denoiser.parameters()).dtype)},
        length=run.student.length,
        tokenizer=fingerprint(tokenizer),
        sampler=run.sampler,
        seed=settings.seed,
        evaluator={"name": "none: the models' own bounds"},
    )
    paths = write_report(
        settings.folder(run.folder),
        "responses",
        {"manifest": facts, "rows": rows, "comparisons": comparisons, "examples": shown},
        LAYOUT,
        title=f"{len(x_ND):,} held-out responses given their prompts, 95 % intervals",
        subtitle=f"{facts['time']} · commit {facts['commit'][:12]} · sampler {run.sampler}",
        pictures={"training": training_curves(read_metrics(run.folder))},
    )
    return with_page(with_differences(table(rows, COLUMNS), comparisons), paths)


COLUMNS: list[Column] = [
    *LEAD,
    NFE,
    ("ppl, at most", lambda row: f"{row['response_ppl']:,.4g}" if "response_ppl" in row else ""),
    ("95 %", lambda row: f"{row['response_ppl_low']:,.4g} to {row['response_ppl_high']:,.4g}" if "nats" in row else ""),
    ("nats a response", lambda row: f"{row['nats']:,.1f}" if "nats" in row else ""),
    ("tokens", lambda row: f"{row['tokens']:.1f}"),
    ("responses", lambda row: str(row["num_samples"])),
]


def _row(
    name: str, steps: int, nfe: float, found: Mapping[str, Resampled], resampling: Mapping[str, Any], count: int
) -> Row:
    return {"model": name, "steps": steps, "nfe": float(nfe), **columns(found, **resampling), "num_samples": count}


def _lengths(x_ND: Int64[Tensor, "N D"], parts_ND: Int64[Tensor, "N D"], eos: int) -> Int64[Tensor, " N"]:
    """Tokens behind the prompt, up to the first EOS, or the end."""
    is_behind_ND = (x_ND == eos) & (parts_ND != 3)
    end_N = torch.where(is_behind_ND.any(1), is_behind_ND.byte().argmax(1), x_ND.shape[1])
    return end_N - (parts_ND == 3).sum(1)


def _examples(
    name: str, steps: int, tokens_ND: Tensor, parts_ND: Tensor, length_N: Tensor, tokenizer: Any
) -> Sequence[Row]:
    given_N = (parts_ND == 3).sum(1).tolist()
    cut = [
        (row[:given], row[given : given + size])
        for row, given, size in zip(tokens_ND, given_N, length_N.tolist(), strict=True)
    ]
    return [
        {"model": name, "steps": steps, "prompt": tokenizer.decode(prompt), "text": tokenizer.decode(text)}
        for prompt, text in cut[:_EXAMPLES]
    ]

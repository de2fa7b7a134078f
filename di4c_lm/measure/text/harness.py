"""Tasks of the lm-evaluation-harness: how a model of masked noise scores and continues texts for it, and what its results look like.

The package `lm_eval` (the extra `harness`) is imported where it is used. Axes: R requests, D positions of the model, S states.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

import torch
from torch import Tensor

from di4c_lm.core.files import write_json
from di4c_lm.core.settings import Texts, at_least, check, section, setting
from di4c_lm.measure.render.tables import aligned, short
from di4c_lm.measure.settings import device_of
from di4c_lm.measure.text.mixture import predict
from di4c_lm.measure.text.samples import TextModel, TextRun
from di4c_lm.processes.denoiser import Positions
from di4c_lm.processes.rng import KeyedRng

Scoring = Literal["chain_rule", "one_call"]
_GREEDY = 1e-9  # top_p that leaves the likeliest state alone
_MAX_NEW = 256  # tokens that the harness lets a model write where a task does not say


@section
class HarnessConfig:
    """Tasks of the lm-evaluation-harness on the models of a run."""

    run: str | None = setting(None, "a run's folder; null: the newest under `outputs` that has a student")
    outputs: str = setting("outputs", "the folder that holds the runs")
    report: str | None = setting(None, "folder to write harness.json to; null: <run>/report")
    models: Texts = setting((), "names of the run's models, or <name>=<folder>; []: the run's own")
    tasks: Texts = setting((), "names of tasks, e.g. [lambada_openai,arc_easy], or of those under `include`")
    include: str | None = setting(None, "a folder with tasks of your own, as YAML files; null: those of the package")
    limit: int = setting(0, "examples of each task; 0: all")
    num_fewshot: int = setting(0, "examples shown before each question")
    scoring: Scoring = setting(
        "chain_rule",
        "log-likelihood of a continuation: chain_rule, one position a call from left to right; one_call, all positions jointly",
    )
    steps: int = setting(16, "sampling steps of a text that is written")
    sampler: str = setting("usual", "how it is sampled: the name of a sampler; usual: the model's own")
    lambdas: int = setting(16, "samples of λ that stand for a mixture (a codebook not larger is enumerated)")
    seed: int = setting(0, "random seed of λ, of sampling and of the examples shown")
    batch_size: int = setting(32, "sequences in a network call")
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "where the models run; auto: a GPU if there is one")

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "lambdas", "batch_size")
        at_least(self, 0, "limit", "num_fewshot", "seed")

    def folder(self, run: Path) -> Path:
        """Where the results on a run go."""
        return Path(self.report) if self.report else run / "report"


@final
@dataclass(frozen=True, kw_only=True)
class Scorer:
    """What the harness asks of a model: log-likelihoods of continuations, and texts.

    A sequence begins with EOS, where there is room for it, then the context, cut at its start where it is too long; the rest is MASK.

    - `chain_rule`: Σ_i log p(c_i | context, c_<i, MASK behind), λ averaged out in each call: the exact log-likelihood of the sampler that
      reveals one position a call from left to right, in as many calls as the continuation has tokens.
    - `one_call`: log E_λ Π_i p(c_i | context; λ), all positions in one call: that of the one-step sampler given the context, in which a
      mixture's correlations count. Of a λ that is not enumerated it is too small on average (Jensen).
    """

    model: TextModel
    scoring: Scoring = "chain_rule"
    steps: int = 16
    sampler: str = "usual"
    lambdas: int = 16
    seed: int = 0
    batch_size: int = 32

    def __post_init__(self) -> None:
        _ = self.model.mask_id  # a model of uniform noise is refused here

    def log_likelihoods(self, requests: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """Of each (context, continuation): log p in nats, and whether each token of the continuation is the likeliest one.

        Raises `ValueError` for a continuation that is longer than the model's sequences.
        """
        return self._scored([self._encoded(*request) for request in requests])

    def rolling(self, texts: Sequence[str]) -> list[float]:
        """log p of whole texts, token by token as `log_likelihoods` has it: in windows of the model's length, each token scored once.

        A window after the first has as its context what it holds besides its own tokens: the last window is moved back to be full.
        """
        size = self.model.length - 1
        totals = []
        for text in texts:
            ids = self._ids(text)
            pieces = []
            for start in range(0, len(ids), size):
                target = ids[start : start + size]
                pieces.append((self._room(ids[:start], len(target)), target))
            totals.append(sum(log_p for log_p, _ in self._scored(pieces)))
        return totals

    def continuations(self, requests: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
        """Of each (context, arguments): what follows, up to the first of the texts `until`, EOS or `max_gen_toks` tokens.

        Further arguments: `do_sample`, without which each token is the likeliest, and `temperature` and `top_p` with it. A context that
        leaves no room for that many tokens, at most half of the model's length, is cut at its start.
        """
        groups: dict[str, list[int]] = {}
        for number, (_, how) in enumerate(requests):
            groups.setdefault(json.dumps(how, sort_keys=True), []).append(number)
        found = [""] * len(requests)
        for said, numbers in groups.items():
            how = json.loads(said)
            most = min(int(how.get("max_gen_toks", _MAX_NEW)), self.model.length // 2)
            starts = [self._room(self._ids(requests[number][0]), most) for number in numbers]
            x_RD = torch.stack([self._sequence(start) for start in starts])
            tokens_RD, _ = self.model.sample_tokens(
                len(x_RD),
                self.steps,
                seed=self.seed,
                batch_size=self.batch_size,
                x_init=x_RD,
                sampler=self.sampler,
                **_decoding(how),
            )
            until = how.get("until") or []
            for number, start, row in zip(numbers, starts, tokens_RD.tolist(), strict=True):
                found[number] = self._text(
                    row[len(start) : len(start) + most], [until] if isinstance(until, str) else until
                )
        return found

    def _ids(self, text: str) -> list[int]:
        return self.model.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _encoded(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """The tokens of both, read as one text where the first are those of the context; spaces between go to the continuation."""
        bare = context.rstrip()
        continuation = context[len(bare) :] + continuation
        before, whole = self._ids(bare), self._ids(bare + continuation)
        target = whole[len(before) :] if whole[: len(before)] == before else self._ids(continuation)
        most = self.model.length - 1
        if len(target) > most:
            raise ValueError(f"continuation of {len(target)} tokens exceeds {most}: {continuation[:60]!r}")
        return self._room(before, len(target)), target

    def _room(self, context: list[int], wanted: int) -> list[int]:
        """EOS and the context, or its end alone, in front of as many tokens as are wanted."""
        room = self.model.length - wanted
        start = [self.model.tokenizer.eos_token_id, *context]
        return start if len(start) <= room else context[-room:]

    def _sequence(self, ids: list[int]) -> Tensor:
        x_D = torch.full((self.model.length,), self.model.mask_id)
        x_D[: len(ids)] = torch.tensor(ids, dtype=torch.int64)
        return x_D

    def _text(self, ids: list[int], until: Sequence[str]) -> str:
        eos = self.model.tokenizer.eos_token_id
        text = self.model.tokenizer.decode(ids[: ids.index(eos)] if eos in ids else ids, skip_special_tokens=True)
        for stop in until:
            text = text.partition(stop)[0] if stop else text
        return text

    @torch.no_grad()
    def _scored(self, pieces: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """log p of each target given its context, and whether it is the likeliest, token by token."""
        total, greedy = [0.0] * len(pieces), [True] * len(pieces)
        calls = list(self._calls(pieces))
        device = next(self.model.denoiser.parameters()).device
        for begin in range(0, len(calls), self.batch_size):
            batch = calls[begin : begin + self.batch_size]
            x_t = torch.stack([self._sequence(seen) for _, seen, _ in batch]).to(device)
            places = [
                (row, len(seen) + i, token) for row, (_, seen, said) in enumerate(batch) for i, token in enumerate(said)
            ]
            row_M, position_M, token_M = torch.tensor(places, device=device).T
            positions = Positions(example=row_M, position=position_M, num_examples=len(batch))
            t_B = (x_t == self.model.mask_id).double().mean(1)
            rng = KeyedRng(self.seed, torch.zeros(len(batch), dtype=torch.int64, device=device))  # the same λ for all
            prediction = predict(self.model, x_t, t_B, rng, lambdas=self.lambdas)
            log_p_B = prediction.read(positions, token_M[:, None]).joint[:, 0].double()
            likeliest_M = prediction.marginals(positions).argmax(1) == token_M
            for (number, _, _), log_p in zip(batch, log_p_B.tolist(), strict=True):
                total[number] += log_p
            for row, right in zip(row_M.tolist(), likeliest_M.tolist(), strict=True):
                greedy[batch[row][0]] &= right
        return list(zip(total, greedy, strict=True))

    def _calls(self, pieces: Sequence[tuple[list[int], list[int]]]) -> list[tuple[int, list[int], list[int]]]:
        """(number of the piece, tokens seen, tokens scored after them) of each network call."""
        if self.scoring == "one_call":
            return [(number, context, target) for number, (context, target) in enumerate(pieces) if target]
        return [
            (number, [*context, *target[:place]], [token])
            for number, (context, target) in enumerate(pieces)
            for place, token in enumerate(target)
        ]


def _decoding(how: dict[str, Any]) -> dict[str, float]:
    temperature = float(how.get("temperature") or 0.0)
    if not how.get("do_sample", temperature > 0) or temperature == 0:
        return {"top_p": _GREEDY}
    return {"temperature": temperature, "top_p": float(how.get("top_p", 1.0))}


def harness_report(run: TextRun, settings: HarnessConfig) -> str:
    """Run the tasks on every model of `run`, write `report/harness.json`, and return the table.

    A row holds model, task, metric, `value`, `error`, the harness's standard error, and examples. Raises `ValueError` where `lm_eval` is
    not installed, for no task and for one that there is not.
    """
    check(settings.tasks, "tasks", settings.tasks, "one or more names of tasks")
    try:
        from di4c_lm.measure.text.harness_model import evaluated
    except ModuleNotFoundError as error:
        raise ValueError(f"di4c eval harness needs the package lm_eval (the extra `harness`): {error}") from None
    device = device_of(settings.device)
    names = ("scoring", "steps", "sampler", "lambdas", "seed", "batch_size")
    scorers: dict[str, Scorer] = {}
    for name, model in run.models.items():
        model.denoiser.to(device)
        scorers[name] = Scorer(model=model, **{key: getattr(settings, key) for key in names})
    rows = evaluated(
        scorers,
        settings.tasks,
        include=settings.include,
        limit=settings.limit or None,
        num_fewshot=settings.num_fewshot,
        seed=settings.seed,
    )
    folder = settings.folder(run.folder)
    how = {key: getattr(settings, key) for key in names}
    write_json(
        folder / "harness.json",
        {"settings": how, "checkpoints": {k: str(v) for k, v in run.paths.items()}, "rows": rows},
    )
    head = ["model", "task", "metric", "value", "error", "examples"]
    lines = [
        ["-" if row[key] is None else short(row[key]) if key in head[3:] else str(row[key]) for key in head]
        for row in rows
    ]
    return f"{aligned(head, lines)}\n\nresults: {folder / 'harness.json'}"

"""A measurement, its manifest and its report in one call: what `eval/gen_ppl.py` and a training run's end both do."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from di4c_lm.core.fingerprints import fingerprint
from di4c_lm.core.settings import to_dict
from di4c_lm.measure.render.manifest import manifest, weights_hash
from di4c_lm.measure.render.table import write_report
from di4c_lm.measure.text.encoding import same_vocabulary
from di4c_lm.measure.text.evaluator import Evaluator
from di4c_lm.measure.text.gen_ppl import Measurement
from di4c_lm.measure.text.gen_ppl_settings import Prompting, Scoring
from di4c_lm.measure.text.perplexity import context_limit


def publish(
    measurement: Measurement,
    folder: Path,
    *,
    settings: Mapping[str, Any],
    checkpoints: Mapping[str, Path],
    tokenizer: Any,
    length: int,
    evaluator: Evaluator,
    scoring: Scoring,
    seed: int,
    model_dtype: torch.dtype = torch.float32,
    sampler: str = "ancestral",
    noise: str = "float64",
    prompting: Prompting | None = None,
) -> dict[str, Path]:
    """Writes gen_ppl.{json,csv,png} into `folder` (gen_ppl_conditional.* where `prompting` is given); their paths by kind.

    `settings`: the plain values of whatever was configured. `checkpoints`: model name to the folder or file its weights came from.
    `length`: tokens a sample. Raises as `manifest` and `write_report` do.
    """
    nfe: dict[str, dict[str, float]] = {}
    for row in measurement.rows:
        nfe.setdefault(row["model"], {})[str(row["steps"])] = row["nfe"]
    facts = manifest(
        config=settings,
        checkpoints=checkpoints,
        seed=seed,
        sampler=sampler,
        nfe=nfe,
        dtypes={"noise": noise, "model": str(model_dtype), "judge": str(next(evaluator.model.parameters()).dtype)},
        evaluator=evaluator_facts(evaluator, tokenizer, scoring),
        length=length,
        tokenizer=fingerprint(tokenizer),
        prompting=to_dict(prompting) if prompting else None,
    )
    kind = "conditional generation" if prompting else "unconditional generation"
    most = max(row["num_samples"] for row in measurement.rows)
    return write_report(
        folder,
        measurement.rows,
        manifest=facts,
        comparisons=measurement.comparisons,
        name="gen_ppl_conditional" if prompting else "gen_ppl",
        title=f"{kind.capitalize()}: {most:,} samples of {length:,} tokens, 95 % intervals",
    )


def evaluator_facts(evaluator: Evaluator, tokenizer: Any, scoring: Scoring) -> dict[str, Any]:
    """What a manifest says of an evaluator: which weights, and how it reads what `tokenizer` writes."""
    folder = Path(evaluator.name).expanduser()
    return {
        "name": evaluator.name,
        "sha256": weights_hash(folder) if folder.is_dir() else None,
        "parameters": sum(p.numel() for p in evaluator.model.parameters()),
        "context": context_limit(evaluator.model),
        "tokenizer": fingerprint(evaluator.tokenizer),
        "reads": "token ids"
        if scoring.retokenize == "auto" and same_vocabulary(tokenizer, evaluator.tokenizer)
        else "text",
        **to_dict(scoring),
    }

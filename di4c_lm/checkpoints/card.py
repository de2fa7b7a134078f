"""The model card of a student: what it is, what it was made from and how, what was measured of it, and how to load it."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from di4c_lm.checkpoints.files import CONFIG_FILE
from di4c_lm.core.files import read_json
from di4c_lm.core.markdown import markdown_table
from di4c_lm.core.retry import is_local

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

CARD = "README.md"
LIBRARY = "di4c-lm"
_SETTINGS, _REPORTS = "config.yaml", ("report/gen_ppl.json", "report/images.json")  # in the folder of a run
_METRICS = {
    "gen_ppl": "generative perplexity",
    "entropy": "entropy (nats)",
    "fid": "FID",
    "inception_score": "Inception Score",
}
_KINDS = {  # of `architecture`: what it writes, the hub's name of the task, what a sample is
    "di4c_lm.DIT": ("text", "text-generation", "a list of texts"),
    "di4c_lm.Decoder": ("text", "text-generation", "a list of texts"),
    "di4c_lm.UNet": ("images", "unconditional-image-generation", "an array of bytes: images, rows, columns, channels"),
    "di4c_lm.MaskGit": ("images as codes", None, "an array of bytes: images, rows, columns, channels"),
}
_BODY = """# {name}

{what}

{facts}

## Measured

{measured}

## Load it

With the package di4c-lm installed from its checkout or wheel. The files hold tensors and settings, and no code:

```python
import di4c_lm

model = di4c_lm.load({name!r})
samples = model.sample(4, steps=4)  # {samples}
```

## Licence and citation

{licence}

Few-step mixture students: S. Hayakawa et al.,
[Distillation of Discrete Diffusion through Dimensional Correlations](https://arxiv.org/abs/2410.08709), ICML 2025.
"""


def model_card(folder: Path, name: str, *, licence: str = "unknown") -> "ModelCard":
    """The card of the exported model in `folder` that is to be called `name` on the hub.

    The run that it stands in, if it does, says what it was made from; the run's report what was measured.

    Args:
        licence: as the hub writes them, `mit` or `cc-by-4.0`; what may be done with a student depends on its teacher and its data.
    """
    import yaml
    from huggingface_hub import ModelCard, ModelCardData

    config = read_json(folder / CONFIG_FILE)
    writes, task, samples = _KINDS[config["architecture"]]
    path = folder.resolve().parent / _SETTINGS
    settings = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    data = ModelCardData(
        library_name=LIBRARY,
        license=licence,
        pipeline_tag=task,
        tags=["masked-diffusion" if writes != "images" else "discrete-diffusion", "few-step", "distillation"],
        base_model=_teacher_on_the_hub(settings),
        datasets=_data_on_the_hub(settings),
        ignore_metadata_errors=True,
    )
    text = _BODY.format(
        name=name,
        what=_what(config, writes),
        facts=markdown_table(("", ""), [(key, value) for key, value in _facts(settings).items() if value]),
        measured=_measured(path.parent),
        samples=samples,
        licence=_LICENCE if licence == "unknown" else f"`{licence}`, as its author says.",
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")


_LICENCE = "Not stated: it depends on those of its teacher and of the data that it was trained on. Ask its author."


def _what(config: Mapping[str, Any], writes: str) -> str:
    mixture = (config["mixture"] or {}).get("kind")
    sizes = f"{config['model'].get('num_blocks') or config['model'].get('depth', '')} blocks".strip()
    model = f"A discrete diffusion model of {writes}" + (
        f" ({config['length']} tokens, {sizes})" if writes == "text" else ""
    )
    if mixture is None:
        return f"{model}, without latents."
    return (
        f"{model} that samples in few network calls: its prediction is a mixture over a latent λ (`mixture={mixture}`), sampled once per "
        "sequence and call, so that positions that are predicted together are correlated."
    )


def _facts(settings: Mapping[str, Any]) -> dict[str, str]:
    """What a run's settings say; nothing for a model that stands in none."""
    if not settings:
        return {}
    train, objective, teacher, data = (settings[key] for key in ("train", "objective", "teacher", "data"))
    batch = train["micro_batch_size"] * train["gradient_accumulation"]
    pretrained = (
        f"trained by the same run: {teacher['pretrain']['steps']:,} updates of {teacher['pretrain']['batch_size']}"
    )
    sources = {"pretrained": _shown(teacher["path"]), "train": pretrained, "random": "random weights"}
    method = {
        ("likelihood", "class_chain"): " (`recipe=copula`: this package's own, and not the method of the Di4C paper)",
        (
            "likelihood",
            "sequential",
        ): " (`recipe=sequential`: this package's own, and not the method of the Di4C paper)",
    }
    mixture = settings["mixture"]["kind"]
    return {
        "teacher": sources[teacher["kind"]],
        "objective": f"`{objective['kind']}`{method.get((objective['kind'], mixture), '')}",
        "training": f"{train['steps']:,} updates of {batch} a rank, learning rate {settings['optim']['lr']:g}, seed {train['seed']}",
        "data": data["dataset"] if data["kind"] == "openwebtext" else _shown(data["path"]) or f"`data={data['kind']}`",
    }


def _shown(path: str | None) -> str:
    """A hub's name as it is; of a path its last part, since the rest is nobody's business."""
    return "" if not path else Path(path).name if is_local(path) else path


def _teacher_on_the_hub(settings: Mapping[str, Any]) -> str | None:
    path = settings.get("teacher", {}).get("path")
    return path if path and not is_local(path) else None


def _data_on_the_hub(settings: Mapping[str, Any]) -> list[str] | None:
    data = settings.get("data", {})
    return [data["dataset"]] if data.get("kind") == "openwebtext" else None


def _measured(run: Path) -> str:
    """The table of the run's closing report."""
    found = [run / name for name in _REPORTS if (run / name).is_file()]
    if not found:
        return "Nothing: the model came without a report."
    report = read_json(found[0])
    rows, facts = report["rows"], report["manifest"]
    metrics = [name for name in _METRICS if all(row.get(name) is not None for row in rows)]
    lines = [
        [
            str(row["model"]),
            str(row["steps"] if row["nfe"] else "–"),
            *(_interval(row, name) for name in metrics),
            str(row["num_samples"]),
        ]
        for row in rows
    ]
    head = ["model", "steps", *(_METRICS[name] for name in metrics), "samples"]
    name = _shown(str(facts["judge"].get("name")))
    evaluator = "the evaluator that the run trained" if name == "evaluator" else f"`{name}`"
    verdict = (
        "\n".join(f"- {line}" for line in report.get("verdict", ()))
        or "- no baseline that needs no network was measured"
    )
    return (
        f"{verdict}\n\n{markdown_table(head, lines)}\n\nWith 95 % bootstrap intervals over samples, evaluated by {evaluator} "
        f"on {facts['time'][:10]} (commit `{facts['commit'][:12]}`, seed {facts['seed']}). Figures of another evaluator do not "
        "compare with these."
    )


def _interval(row: Mapping[str, Any], name: str) -> str:
    return f"{row[name]:,.4g} ({row[f'{name}_low']:,.4g} to {row[f'{name}_high']:,.4g})"

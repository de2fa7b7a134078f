"""Figures of the documentation: each is rendered from a result file, `docs/results/<name>.json`, at the place that a comment marks.

    <!-- table: copula_markov -->                   a view of the file as a table; a second name chooses another view
    <!-- end -->
    <!-- made: copula_markov -->                    how the figures of the file were made
    <!-- end -->
    <!-- value: quick_start; model=teacher; steps=2; {gen_ppl:,} -->622<!-- end -->      a figure within a sentence

A result file holds `manifest`, how its figures were made; `rows`, flat objects; and `views`. A view has `columns`, pairs of a heading and
a template that the row fills; with `pivot` also a column for each value of that key, under its `heads`, filled by `cells`. Where a
template is a list, the first that the row has all keys for is taken.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from di4c_lm.core.markdown import markdown_table
from di4c_lm.measure.render.manifest import commit
from di4c_lm.runs.ablate.outcome import MEASURES, summary

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results"
FACTS = (
    "date",
    "source",
    "commit",
    "command",
    "data",
    "model",
    "training",
    "evaluator",
    "samples",
    "seeds",
    "interval",
    "machine",
    "counting",
)  # that every manifest states
SAID = {
    "data": "Data",
    "model": "Models",
    "training": "Training",
    "evaluator": "Evaluated by",
    "samples": "Samples",
    "seeds": "Seeds",
    "interval": "Intervals",
    "note": "Besides",
    "machine": "Machine",
    "counting": "Counting",
    "commit": "Commit",
    "source": "Source",
}
MARKED = re.compile(r"<!-- (table|made|value): ([^>]*?) -->(.*?)<!-- end -->", re.DOTALL)


def read_result(name: str, folder: Path = RESULTS) -> dict[str, Any]:
    """The result file called `name`. Raises `ValueError` for one that is absent, or lacks a part or a fact of its making."""
    path = folder / f"{name}.json"
    if not path.is_file():
        raise ValueError(f"{path}: there is no such result file")
    result = json.loads(path.read_text(encoding="utf-8"))
    absent = [part for part in ("manifest", "rows", "views") if not result.get(part)]
    absent += [f"manifest.{fact}" for fact in FACTS if not result.get("manifest", {}).get(fact)]
    if absent:
        raise ValueError(f"{path}: lacks {', '.join(absent)}")
    return result


def table(result: Mapping[str, Any], view: str = "default") -> str:
    """A view of a result as Markdown. Raises `ValueError` for one that there is not."""
    if view not in result["views"]:
        raise ValueError(f"view must be one of {', '.join(result['views'])}, got {view!r}")
    shown, rows = result["views"][view], result["rows"]
    columns = shown["columns"]
    if "pivot" not in shown:
        return markdown_table(
            [head for head, _ in columns], [[_filled(one, row) for _, one in columns] for row in rows]
        )
    groups: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        if cell := _filled(shown["cells"], row, default=""):
            lead = tuple(_filled(one, row) for _, one in columns)
            groups.setdefault(lead, {})[str(row[shown["pivot"]])] = cell
    heads = shown["heads"]
    lines = [[*lead, *(cells.get(key, "") for key in heads)] for lead, cells in groups.items()]
    return markdown_table([*(head for head, _ in columns), *heads.values()], lines)


def made(result: Mapping[str, Any]) -> str:
    """How the figures of a result were made, in a paragraph."""
    facts = dict(result["manifest"])
    commands = {
        "not recorded": "by a command that was not recorded",
        "trial code": "by trial code that is not in this repository",
    }
    head = f"Made {commands.get(facts['command'], 'by `' + facts['command'] + '`')}"
    said = [f"{heading}: {facts[key]}" for key, heading in SAID.items() if facts.get(key)]
    return ". ".join([f"{head}, {facts['date']}", *said]) + "."


def value(result: Mapping[str, Any], chosen: Mapping[str, str], template: str) -> str:
    """What the one row with the `chosen` values fills into `template`. Raises `ValueError` unless there is exactly one."""
    rows = [row for row in result["rows"] if all(str(row.get(key)) == said for key, said in chosen.items())]
    if len(rows) != 1:
        raise ValueError(f"expected one row with {dict(chosen)}, found {len(rows)}")
    return _filled(template, rows[0])


def render(text: str, folder: Path = RESULTS) -> str:
    """A page with all its figures from the result files. Raises `ValueError` for a mark that names what there is not."""

    def rendered(mark: re.Match[str]) -> str:
        kind, what, _ = mark.groups()
        try:
            if kind == "table":
                name, *view = what.split()
                shown = f"\n{table(read_result(name, folder), *view)}\n"
            elif kind == "made":
                shown = f"\n{made(read_result(what, folder))}\n"
            else:
                name, *choices, template = what.split("; ")
                pairs = dict(one.split("=", 1) for one in choices)
                shown = value(read_result(name, folder), pairs, template)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"<!-- {kind}: {what} -->: {error}") from error
        return f"<!-- {kind}: {what} -->{shown}<!-- end -->"

    return MARKED.sub(rendered, text)


def pages() -> Iterator[Path]:
    """Those that may show figures."""
    yield ROOT / "README.md"
    yield from sorted((ROOT / "docs").rglob("*.md"))


def unmarked_tables(text: str) -> list[str]:
    """Lines of tables with two or more cells that are figures, where no mark says where they come from."""
    figure = re.compile(r"[-+−]?[\d,]*\.?\d+( ± .*| \(.*| / .*|, .*)?")
    bare = MARKED.sub("", text)
    return [
        line
        for line in bare.splitlines()
        if line.startswith("|")
        and sum(bool(figure.fullmatch(cell.strip())) for cell in line.strip("|").split("|")) >= 2
    ]


def _filled(template: str | Sequence[str], row: Mapping[str, Any], default: str | None = None) -> str:
    """The first template whose keys the row has; `default`, or an error, where there is none."""
    for one in [template] if isinstance(template, str) else template:
        keys = re.findall(r"{(\w+)", one)
        if all(row.get(key) is not None for key in keys):
            return one.format_map(row)
    if default is None:
        raise ValueError(f"no value for {template!r} in {dict(row)}")
    return default


def of_report(
    report: Mapping[str, Any], *, command: str, counting: str = "", evaluator: str = "", note: str = ""
) -> dict[str, Any]:
    """The result of a run's closing report on text: its figures to six digits, and its manifest's facts in words.

    What counting does to the models is said by `counting`, or by the report itself where it measured that; what the evaluator is by
    `evaluator`, or by the name of its folder.
    Raises `ValueError` for a report of another kind.
    """
    facts, verdict = report["manifest"], report.get("verdict", ())
    run = facts["config"].get("run", {})
    absent = [key for key in ("data", "model", "mixture", "teacher", "train", "objective") if key not in run]
    if absent or "gen_ppl" not in report["rows"][0]:
        raise ValueError("report must be report/gen_ppl.json of a run on text")
    data, model, teacher, train = run["data"], run["model"], run["teacher"], run["train"]
    pretrained = f"{teacher['pretrain']['steps']:,} updates of {teacher['pretrain']['batch_size']}"
    read_by = Path(str(facts["judge"]["name"])).name
    teacher_name = Path(teacher["path"]).name if teacher["path"] else "random"
    trained_here = f"a BPE of {data['vocab_size']:,} entries, trained on them"
    tokenizer = trained_here if data["tokenizer"] == "train" else Path(data["tokenizer"]).name
    metrics = [key + end for key in ("gen_ppl", "entropy") for end in ("", "_low", "_high")]
    rows = [
        {
            "model": _called(row["model"]),
            "steps": row["steps"] if row["nfe"] else 0,
            **{key: float(f"{row[key]:.6g}") for key in metrics},
        }
        for row in report["rows"]
    ]
    steps = sorted({row["steps"] for row in rows})
    heads = {str(n): "no steps" if n == 0 else f"{n} step{'s' if n > 1 else ''}" for n in steps}
    view = {"columns": [["", "{model}"]], "pivot": "steps", "heads": heads}
    interval = "{gen_ppl:,.0f} ({gen_ppl_low:,.0f} to {gen_ppl_high:,.0f})"
    return {
        "manifest": {
            "date": facts["time"][:10],
            "source": "the run's own report/gen_ppl.json",
            "commit": facts["commit"],
            "command": command,
            "data": f"`data={data['kind']}`, {facts['length']} tokens of {tokenizer}",
            "model": f"{model['num_blocks']} blocks of width {model['hidden_size']}; student: `mixture={run['mixture']['kind']}`",
            "training": f"teacher {pretrained if teacher['kind'] == 'train' else teacher_name}; student "
            f"`objective={run['objective']['kind']}`, {train['steps']:,} updates of {train['micro_batch_size']}",
            "evaluator": evaluator or ("the evaluator that the run trained" if read_by == "evaluator" else read_by),
            "samples": f"{max(row['num_samples'] for row in report['rows']):,} a cell",
            "seeds": f"one: {facts['seed']}",
            "interval": "95 % bootstrap over samples",
            "machine": f"{facts['machine']['platform'].partition('-')[0]}, torch {facts['versions']['torch']}",
            "counting": counting or "; ".join(verdict) or "not measured",
            **({"note": note} if note else {}),
        },
        "views": {
            "default": {**view, "cells": [interval]},
            "entropy": {**view, "cells": ["{entropy:.2f}"]},
            "short": {**view, "heads": {str(n): str(n or "none") for n in steps}, "cells": ["{gen_ppl:,.0f}"]},
        },
        "rows": rows,
    }


def of_study(rows: Sequence[Mapping[str, Any]], facts: Mapping[str, str]) -> dict[str, Any]:
    """The result of a study with an exact or a given teacher, of rows.json: means over seeds with 95 % intervals, of one seed its own.

    `facts` are the manifest's. Raises `ValueError` for rows of another kind.
    """
    if not {"factorisation_nats", "gen_ppl"} & rows[0].keys():
        raise ValueError("report must be rows.json of a study with an exact teacher, or a given one")
    named = _called if "gen_ppl" in rows[0] else str
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    operations = [*dict.fromkeys(row.get("operation") for row in rows)]
    for row in sorted(rows, key=lambda row: operations.index(row.get("operation"))):
        place = {key: row[key] for key in ("operation", "t") if key in row}
        steps = {"steps": 0 if row["model"].startswith("ngram") else row["steps"]} if "steps" in row else {}
        one = {"model": row.get("setting") or named(row["model"]), **steps, **place}
        groups.setdefault(tuple(one.items()), []).append(row)
    kept = []
    for group, of_seeds in groups.items():
        one = {**dict(group), "seeds": len(of_seeds)}
        for measure in (measure for measure in MEASURES if measure in of_seeds[0]):
            mean, half = summary([row[measure] for row in of_seeds])
            one |= {measure: float(f"{round(mean, 6) + 0.0:.6g}")}
            ends = {end: of_seeds[0].get(end) for end in (f"{measure}_low", f"{measure}_high")}
            if len(of_seeds) > 1:
                one |= {f"{measure}_pm": float(f"{half:.3g}")}
            elif None not in ends.values():
                one |= {end: float(f"{value:.6g}") for end, value in ends.items()}
        kept.append(one)
    over = "95 % bootstrap over samples" if any(key.endswith("_low") for row in kept for key in row) else ""
    several = "95 % by Student's t over seeds" if max(row["seeds"] for row in kept) > 1 else ""
    said = {"interval": "; of one seed ".join(filter(None, (several, over))) or "none: one seed", "commit": commit()}
    measures = [measure for measure in MEASURES if any(measure in row for row in kept)]
    views = {measure if number else "default": _view(measure, kept) for number, measure in enumerate(measures)}
    return {"manifest": {"source": "the study's own rows.json", **said, **facts}, "views": views, "rows": kept}


def _view(measure: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A line a model, or operation and model, a column a number of steps, or time."""
    shown = [row for row in rows if measure in row]
    along = "t" if "t" in shown[0] else "steps"
    places = sorted({row[along] for row in shown}, reverse=along == "t")
    named = {"t": "t = {:g}".format, "steps": lambda n: f"{n} step{'s' * (n > 1)}" if n else "no steps"}
    form = {"accuracy": ".3f", "factorisation_nats": ".2f", "gen_ppl": ",.0f", "entropy": ".2f", "copied_8": ".1%"}
    digits = form.get(measure, ".1f")
    return {
        "columns": [*([["operation", "{operation}"]] if "operation" in shown[0] else []), ["", "{model}"]],
        "pivot": along,
        "heads": {str(place): named[along](place) for place in places},
        "cells": [
            f"{{{measure}:{digits}}} ± {{{measure}_pm:{digits}}}",
            f"{{{measure}:{digits}}} ({{{measure}_low:{digits}}} to {{{measure}_high:{digits}}})",
            f"{{{measure}:{digits}}}",
        ],
    }


def _called(model: str) -> str:
    """A model of a report as readers know it."""
    if order := re.fullmatch(r"ngram_(\d+)", model):
        context = int(order[1]) - 1
        return f"n-grams of the training text, {context} token{'s' if context > 1 else ''} of context"
    return {"data": "validation text", "token_bigram": "teacher's marginals with token bigrams, nothing learned"}.get(
        model, model
    )


def as_text(result: Mapping[str, Any]) -> str:
    """A result file: a line a view and a line a row."""
    manifest = json.dumps(result["manifest"], indent=2, ensure_ascii=False).replace("\n", "\n  ")
    views = ",\n".join(f"    {json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in result["views"].items())
    rows = ",\n".join(f"    {json.dumps(row, ensure_ascii=False)}" for row in result["rows"])
    return f'{{\n  "manifest": {manifest},\n  "views": {{\n{views}\n  }},\n  "rows": [\n{rows}\n  ]\n}}\n'

"""What is sent to the hub, against a local server that answers as the hub does; and that it loads from there."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from di4c_lm.checkpoints import own
from di4c_lm.checkpoints.card import model_card
from di4c_lm.checkpoints.load import load_checkpoint
from di4c_lm.checkpoints.push import push_to_hub
from di4c_lm.core.compose import CONFIGS, compose
from di4c_lm.domains.codes.domain import CodeModel
from di4c_lm.domains.text.settings import TextSettings
from di4c_lm.mixtures.class_chain import ClassChainSettings
from di4c_lm.runs.folder import write_settings
from tests.checkpoints.formats import LENGTH
from tests.checkpoints.helpers import assert_same_tensors, tiny
from tests.checkpoints.hub_server import SHA, Hub
from tests.domains import test_codes
from tests.measure.models import text_model
from tests.measure.render.rows import ROWS

VERDICT = "counting beats student at every number of steps"
MANIFEST = {"time": "2026-11-20T10:00:00", "commit": "abc123", "seed": 0, "judge": {"name": "/home/me/run/evaluator"}}


def run_in(folder: Path, *overrides: str, head: bool = False) -> Path:
    """A finished run: its settings, its report, its teacher and its student, as a head alone where that is asked for."""
    folder.mkdir()
    write_settings(folder, compose(TextSettings, overrides, CONFIGS, "text"))
    (folder / "report").mkdir()
    (folder / "report" / "gen_ppl.json").write_text(
        json.dumps({"manifest": MANIFEST, "rows": ROWS, "verdict": [VERDICT]})
    )
    model = text_model(codes=3, window="classes")
    model.save_pretrained(folder / "student")
    if head:
        frozen = tiny(ClassChainSettings(codebook_size=3))
        own.save(folder / "teacher", frozen.network, length=LENGTH)
        own.save(folder / "student", frozen, length=LENGTH, backbone="../teacher")
    return folder


def code_in(card: ModelCard) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    return code


def back(hub: Hub, folder: Path) -> Path:
    """What was pushed, as a folder."""
    for name, content in hub.pushed.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_a_folder_is_sent_with_a_card_and_loads_as_it_was(hub: Hub, tmp_path: Path) -> None:
    own.save(tmp_path / "student", tiny(seed=3), length=LENGTH)
    (tmp_path / "student" / "tokenizer.json").write_text("{}")
    (tmp_path / "student" / "modeling.py").write_text("raise SystemExit")
    (tmp_path / "student" / ".tmp-x").mkdir()
    (tmp_path / "student" / ".tmp-x" / "half").write_text("half")
    hub.failures = [503]
    address = push_to_hub(tmp_path / "student", "me/student")
    assert address == f"{hub.url}/me/student/commit/{SHA['main']}"
    assert set(hub.pushed) == {"README.md", "config.json", "model.safetensors", "tokenizer.json"}
    assert not (tmp_path / "student" / "README.md").exists()
    assert_same_tensors(load_checkpoint(back(hub, tmp_path / "back")).tensors(), tiny(seed=3).tensors())


def test_a_student_is_sent_from_its_run_and_loads_from_the_hub_by_the_code_of_its_card(
    hub: Hub, tmp_path: Path
) -> None:
    run = run_in(tmp_path / "run", "data=openwebtext", "recipe=copula", "eval.skip=true")
    push_to_hub(run, "me/student", licence="mit")
    hub.files[("me/student", "main")] = dict(hub.pushed)
    card = ModelCard(hub.pushed["README.md"].decode())
    header: Any = card.data
    assert header.license == "mit" and header.library_name == "di4c-lm"
    assert header.datasets == ["Skylion007/openwebtext"] and header.pipeline_tag == "text-generation"
    assert "evaluated by the evaluator that the run trained on 2026-11-20 (commit `abc123`, seed 0)" in card.text
    assert "| student | 2 | 500 (450 to 550) | 3.5 (3.4 to 3.6) | 8 |" in card.text
    assert (
        f"- {VERDICT}" in card.text
        and "mixture=class_chain" in card.text
        and "not the method of the Di4C paper" in card.text
    )
    assert "/home/me" not in card.content and str(tmp_path) not in card.content
    found: dict[str, Any] = {}
    exec(code_in(card), found)
    assert len(found["samples"]) == 4 and all(isinstance(one, str) for one in found["samples"])
    assert not any(request.endswith(".py") for request in hub.requests)


def test_a_head_is_sent_with_its_teachers_weights(hub: Hub, tmp_path: Path) -> None:
    run = run_in(tmp_path / "run", head=True)
    push_to_hub(run, "me/student")
    assert json.loads(hub.pushed["config.json"])["backbone"] is None
    assert json.loads((run / "student" / "config.json").read_text())["backbone"]["path"] == "../teacher"
    expected = tiny(ClassChainSettings(codebook_size=3)).tensors()
    assert_same_tensors(load_checkpoint(back(hub, tmp_path / "back")).tensors(), expected)


def test_a_card_of_ones_own_is_kept(hub: Hub, tmp_path: Path) -> None:
    own.save(tmp_path / "student", tiny(), length=LENGTH)
    (tmp_path / "student" / "README.md").write_text("mine")
    push_to_hub(tmp_path / "student", "me/student")
    assert hub.pushed["README.md"] == b"mine"


@pytest.mark.parametrize(
    "overrides, base_model, told",
    [
        (("teacher=mdlm_owt",), "kuleshov-group/mdlm-owt", "| teacher | kuleshov-group/mdlm-owt |"),
        (("teacher=/home/me/mdlm",), None, "| teacher | mdlm |"),
        ((), None, "| teacher | trained by the same run: 900 updates of 32 |"),
    ],
)
def test_the_teacher_is_named_on_the_card(
    overrides: tuple[str, ...], base_model: str | None, told: str, tmp_path: Path
) -> None:
    card = model_card(run_in(tmp_path / "run", *overrides) / "student", "me/student")
    header = yaml.safe_load(card.content.split("---")[1])
    assert header.get("base_model") == base_model and told in card.text and "/home/me" not in card.content
    assert header["license"] == "unknown" and "Not stated" in card.text


def test_images_load_from_the_hub_by_the_code_of_their_card(hub: Hub, tmp_path: Path) -> None:
    CodeModel(denoiser=test_codes.denoiser(), codec=test_codes.coder()).save_pretrained(tmp_path / "student")
    push_to_hub(tmp_path / "student", "me/images")
    hub.files[("me/images", "main")] = dict(hub.pushed)
    found: dict[str, Any] = {}
    exec(code_in(ModelCard(hub.pushed["README.md"].decode())), found)
    assert found["samples"].shape == (4, 4, 4, 1)


def test_a_folder_without_a_checkpoint_is_refused(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="lacking model.safetensors, config.json"):
        push_to_hub(tmp_path, "me/student")
    assert hub.requests == []


def test_a_token_that_the_hub_refuses(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    own.save(tmp_path / "student", tiny(), length=LENGTH)
    with pytest.raises(ValueError, match="the hub refuses the upload"):
        push_to_hub(tmp_path / "student", "me/student")
    assert hub.pushed == {}

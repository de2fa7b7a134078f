"""The sampling tool on images: a picture of them, by class, step by step; and the steps of texts in a terminal's colours."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from di4c_lm.domains.text.model import TextModel
from di4c_lm.runs import sample as tool

CELL = {"codes": (48, 72), "pixels": (48, 48)}  # of a picture, by image


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    model = request.getfixturevalue(request.param)
    (model["student"] if request.param == "texts" else model).save_pretrained(tmp_path / request.param)
    return tmp_path / request.param


def picture(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def size(kind: str, lines: int, across: int) -> tuple[int, int]:
    height, width = CELL[kind]
    return lines * (height + 2) - 2, across * (width + 2) - 2


@pytest.mark.parametrize("folder", ["codes", "pixels"], indirect=True)
def test_images_are_written_side_by_side(capsys, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "grid.png"
    assert tool.main([f"model={folder}", "num_samples=3", "steps=2", f"out={out}", "seed=4"]) == 0
    assert f"{out}: 3 images (" in capsys.readouterr().out
    assert picture(out).shape == (*size(folder.name, 2, 2), 3)
    from di4c_lm import load

    image = load(folder).sample(3, steps=2, seed=4)[0, :, :, 0]
    scale = CELL[folder.name][0] // len(image)
    height, width = CELL[folder.name]
    assert (picture(out)[:height:scale, :width:scale, 0] == image).all()


@pytest.mark.parametrize("folder", ["codes"], indirect=True)
def test_a_line_is_a_class_and_guidance_has_its_calls(capsys, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "grid.png"
    words = [f"model={folder}", "labels=[0,2,1]", "num_samples=4", "steps=2", f"out={out}", "guidance=1.0"]
    assert tool.main(words) == 0
    assert picture(out).shape == (*size("codes", 3, 4), 3)
    assert "12 images (confidence, 3 network calls a sample)" in capsys.readouterr().out


@pytest.mark.parametrize("folder", ["codes", "pixels"], indirect=True)
def test_a_line_is_a_step_where_steps_are_shown(folder: Path, tmp_path: Path) -> None:
    out, whole = tmp_path / "steps.png", tmp_path / "whole.png"
    words = [f"model={folder}", "num_samples=5", "batch_size=4", "steps=3"]
    assert tool.main([*words, f"out={out}", "--show-steps"]) == 0
    assert tool.main([*words, f"out={whole}"]) == 0
    found, (height, width) = picture(out), CELL[folder.name]
    assert found.shape[:2] == size(folder.name, 3, 4)
    assert (found[-height:, :width, :3] == picture(whole)[:height, :width]).all()


@pytest.mark.parametrize(
    "folder, words, message",
    [
        ("codes", ["labels=[3]"], "3"),
        ("codes", ["guidance=2"], "guidance must be 0 where no condition"),
        ("codes", ["prompt=a"], "prompt must be left out for images, got"),
        ("codes", ["jsonl=x.jsonl"], "jsonl must be left out for images, got 'x.jsonl'"),
        ("codes", ["out=x.gif"], "out must be a file whose name ends in .png, got 'x.gif'"),
        ("codes", ["labels=[a]"], "labels must be a list [...] of whole numbers"),
        ("codes", ["out=nowhere/x.png"], "nowhere/x.png: No such file or directory"),
        ("pixels", ["labels=[0]"], "labels must be left out: the model knows no classes, got [0]"),
        ("pixels", ["sampler=confidence"], "sampler=confidence needs a masked process"),
        ("pixels", ["grid=optimised"], "grid must be one of uniform, cosine, published"),
        ("texts", ["out=x.png"], "out must be left out for text, got 'x.png'"),
        ("texts", ["labels=[1]"], "labels must be left out for text, got [1]"),
    ],
    indirect=["folder"],
)
def test_bad_input_ends_with_status_2(
    capsys, folder: Path, words: list[str], message: str, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        tool.main([f"model={folder}", *words])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize("terminal, no_color", [(True, ""), (True, "1"), (False, "")])
def test_a_terminal_has_the_steps_as_colours(
    capsys,
    texts: dict[str, TextModel],
    tmp_path: Path,
    monkeypatch,
    terminal,
    no_color: str,
) -> None:
    coloured = terminal and not no_color
    texts["student"].save_pretrained(tmp_path)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    monkeypatch.setenv("NO_COLOR", no_color)
    words = [f"model={tmp_path}", "num_samples=3", "batch_size=2", "steps=4", "prompt=the cat", "--show-steps"]
    assert tool.main(words) == 0
    lines = re.findall(r"step +(\d), (\d+) masked: ((?:.|\n)*?)(?=\nstep|\n---)", capsys.readouterr().out)
    assert [int(step) for step, _, _ in lines] == [1, 2, 3, 4] * 2  # of two batches
    for _, masked, text in lines:
        plain = re.sub("\x1b\\[[\\d;]*m", "", text)
        assert plain.startswith("the cat") and plain.count("█") == int(masked)
        assert ("\x1b[30;48;5;" in text) == coloured
    if coloured:
        first, last = (set(re.findall(r"48;5;(\d+)m", lines[index][2])) for index in (0, 3))
        assert first == {"183"} and len(last) > 1

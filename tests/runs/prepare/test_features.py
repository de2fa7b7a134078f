"""Features of a frozen teacher made once: resumable, checksummed, refused by name where they do not fit, and the same loss from them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from di4c_lm.core.compose import CONFIGS, compose
from di4c_lm.data.records.features import FeatureSource
from di4c_lm.data.records.shards import Shards
from di4c_lm.domains.text.domain import DOMAIN
from di4c_lm.domains.text.model import TextModel
from di4c_lm.domains.text.settings import TextSettings
from di4c_lm.mixtures.class_chain import ClassChainSettings
from di4c_lm.mixtures.sequential import SequentialSettings
from di4c_lm.objectives.likelihood import Likelihood
from di4c_lm.runs import recipe
from di4c_lm.runs.prepare import features
from tests.measure.models import text_model
from tests.measure.tiny import words

TOKENIZER = words("aa", "ab")
TOKENIZER.add_special_tokens({"bos_token": "<eos>"})  # as every corpus's has
LENGTH, EPOCHS = 8, 2
CHAIN = ("mixture=class_chain", "mixture.codebook_size=3")


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("teachers")
    for seed in (0, 1):
        replace(text_model(length=LENGTH, seed=seed), tokenizer=TOKENIZER).save_pretrained(folder / str(seed))
    lines = [json.dumps({"text": f"{'aa ab ' * (n % 5 + 2)}aa {'ab ' * n}"}) for n in range(40)]
    (folder / "corpus.jsonl").write_text("\n".join(lines))
    pairs = [json.dumps({"prompt": "aa " * (n % 3 + 1), "response": "ab aa " + "ab " * (n % 4)}) for n in range(40)]
    (folder / "pairs.jsonl").write_text("\n".join(pairs))
    return [folder / "0", folder / "1"]


def arguments(teacher: Path, out: Path, *more: str, corpus: str = "corpus") -> list[str]:
    where = [f"teacher={teacher}", f"data={teacher.parent / corpus}.jsonl", f"data.length={LENGTH}", "run.device=cpu"]
    return [f"out={out}", f"epochs={EPOCHS}", "shard_rows=10", "batch_size=4", *where, *more]


@pytest.fixture(scope="module")
def made(teachers: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("features") / "made"
    assert features.main(arguments(teachers[0], folder)) == 0
    return folder


def source_of(folder: Path) -> FeatureSource:
    return FeatureSource(Shards.read(folder).verified("always"), seed=3)


def settings(teacher: Path, folder: Path, *more: str) -> TextSettings:
    where = [f"teacher={teacher}", "data=features", f"data.path={folder}", f"data.length={LENGTH}"]
    small = ["train.steps=2", "train.save_every=0", "run.device=cpu", "eval.skip=true"]
    return compose(TextSettings, [*where, *small, *more], CONFIGS, "text")


@pytest.mark.parametrize(
    "mixture",
    [
        ClassChainSettings(codebook_size=3),
        ClassChainSettings(codebook_size=3, positions="revealed"),
        SequentialSettings(),
        SequentialSettings(positions="revealed", order="random", candidates=2),
    ],
)
def test_the_loss_and_its_gradient_are_those_of_running_the_teacher(
    mixture: Any, made: Path, teachers: list[Path]
) -> None:
    teacher = TextModel.from_pretrained(teachers[0])
    student = mixture.over(teacher.denoiser, torch.Generator().manual_seed(0))
    for parameter in student.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    objective = Likelihood().build(student, teacher.process, seed=1)
    batch = source_of(made).read(0, 12)
    assert batch.noised is not None and batch.noised.features is not None
    assert 0 < len(batch.noised.features) < batch.x.numel()
    found = []
    for features_MH in (batch.noised.features, None):
        loss, _ = objective(replace(batch, noised=replace(batch.noised, features=features_MH)))
        found.append((loss, *torch.autograd.grad(loss, list(student.parameters()), allow_unused=True)))
    for here, there in zip(*found, strict=True):
        torch.testing.assert_close(here, there, rtol=1e-6, atol=1e-7)


def test_each_sequence_is_there_once_an_epoch_with_noise_of_its_own(made: Path, teachers: list[Path]) -> None:
    source = source_of(made)
    whole = source.read(0, len(source))
    assert sorted(whole.sample_id.tolist()) == list(range(len(source))) and len(source) % EPOCHS == 0
    rows = [tuple(row) for row in whole.x[whole.sample_id.argsort()].tolist()]
    assert sorted(rows[: len(rows) // 2]) == sorted(rows[len(rows) // 2 :])
    assert whole.noised is not None and whole.noised.features is not None
    assert len(whole.noised.t.unique()) > 5
    is_masked_BD = whole.noised.x_t == TOKENIZER.mask_token_id
    assert torch.equal(whole.x[~is_masked_BD], whole.noised.x_t[~is_masked_BD])
    assert int(is_masked_BD.sum()) == len(whole.noised.features)
    assert source.tokens.read(5, 7).x.tolist() == source.read(5, 7).x.tolist() == whole.x[5:12].tolist()


def test_an_interrupted_command_resumes_and_makes_the_same(
    made: Path, teachers: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []

    def write(*given: Any) -> None:
        begun.append(given[5].start)
        if begun == [0, 10]:
            raise KeyboardInterrupt
        real(*given)

    real, here = features._write, arguments(teachers[0], tmp_path / "made")
    monkeypatch.setattr(features, "_write", write)
    with pytest.raises(SystemExit):
        features.main(here)
    assert features.main(here) == 0 and features.main(here) == 0
    assert begun == [0, 10, *range(10, len(source_of(made)), 10)]
    for shard in Shards.read(made).index.files:
        assert (made / shard.name).read_bytes() == (tmp_path / "made" / shard.name).read_bytes()


@pytest.mark.parametrize("which", ["train_00001.bin", "features_00001.bin"])
def test_a_changed_file_is_named_and_left_out_where_that_is_asked_for(
    which: str, teachers: list[Path], made: Path, tmp_path: Path
) -> None:
    for path in made.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    content = bytearray((tmp_path / which).read_bytes())
    content[3] ^= 1
    (tmp_path / which).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{which}: corrupt: expected"):
        source_of(tmp_path)
    left = FeatureSource(Shards.read(tmp_path).verified("always", skip_bad=True), seed=3)
    there = source_of(made)
    assert len(left) == len(there) - 10
    one, other = left.read(0, len(left)), there.read(0, len(there))
    for number in (0, 25):  # before and behind the gap
        found = [int((batch.sample_id == number).nonzero()) for batch in (one, other)]
        parts = []
        for batch, row in zip((one, other), found, strict=True):
            assert batch.noised is not None and batch.noised.features is not None
            counts_B = (batch.noised.x_t == TOKENIZER.mask_token_id).sum(1).tolist()
            parts.append(batch.noised.features.split(counts_B)[row])
        assert torch.equal(*parts) and len(parts[0])


def test_a_student_is_trained_on_them_and_its_network_is_not_run(
    made: Path, teachers: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from di4c_lm.networks.dit import DIT

    def stages(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was run")

    with monkeypatch.context() as patch:
        patch.setattr(DIT, "stages", stages)
        assert recipe.run(DOMAIN, settings(teachers[0], made, *CHAIN, f"run.dir={tmp_path / 'run'}")) == 0
    assert TextModel.from_pretrained(tmp_path / "run" / "student").length == LENGTH


def test_what_is_given_of_records_stands_as_it_is(teachers: list[Path], tmp_path: Path) -> None:
    out, more = tmp_path / "made", ("data.records=prompt", "precision=bfloat16")
    assert features.main(arguments(teachers[0], out, *more, corpus="pairs")) == 0
    batch = source_of(out).read(0, 20)
    assert batch.given is not None and batch.noised is not None and batch.noised.features is not None
    is_given_BD = torch.arange(LENGTH) < batch.given[:, None]
    assert int(is_given_BD.sum()) and torch.equal(batch.x[is_given_BD], batch.noised.x_t[is_given_BD])
    assert batch.noised.features.dtype == torch.bfloat16 and batch.noised.features.isfinite().all()
    config = settings(teachers[0], out, *CHAIN, "data.records=prompt", f"run.dir={tmp_path / 'run'}")
    assert recipe.run(DOMAIN, config) == 0


def test_features_of_another_teacher_or_of_other_times_are_refused_by_name(made: Path, teachers: list[Path]) -> None:
    DOMAIN.check_teacher(settings(teachers[0], made, *CHAIN))
    with pytest.raises(ValueError, match=r"data\.path must hold features of the teacher .*1, whose weights"):
        DOMAIN.check_teacher(settings(teachers[1], made, *CHAIN))
    with pytest.raises(ValueError, match=r"objective\.times\.grid_share must be 0\.8, as the features in .* got 0\.5"):
        DOMAIN.check_teacher(settings(teachers[0], made, *CHAIN, "objective.times.grid_share=0.5"))
    with pytest.raises(ValueError, match=r"data\.length=4, but the shards in .* were prepared with 8"):
        DOMAIN.checks(settings(teachers[0], made, *CHAIN, "data.length=4"))["data"]()
    with pytest.raises(
        ValueError, match=r"data\.path must be a folder of `di4c prepare shards`, got shards of features"
    ):
        DOMAIN.checks(
            compose(
                TextSettings,
                [
                    f"teacher={teachers[0]}",
                    "data=shards",
                    f"data.path={made}",
                    f"data.length={LENGTH}",
                    "eval.skip=true",
                ],
                CONFIGS,
                "text",
            )
        )["data"]()


@pytest.mark.parametrize(
    "said, message",
    [
        (["objective=di4c", "mixture=codes"], "objective must be likelihood where data.kind=features, got 'di4c'"),
        (["mixture=codes"], "mixture must be class_chain or sequential where data.kind=features, got 'codes'"),
        ([*CHAIN, "mixture.freeze_backbone=false"], "mixture.freeze_backbone must be true where data.kind=features"),
        ([*CHAIN, "objective.marginal_weight=1"], "objective.marginal_weight must be 0 where data.kind=features"),
        ([*CHAIN, "model.dropout=0.1"], "model.dropout must be 0 where data.kind=features"),
        ([*CHAIN, "data.streaming=true"], "data.streaming must be false where kind=features"),
    ],
)
def test_what_reads_no_features_is_refused(said: list[str], message: str, made: Path, teachers: list[Path]) -> None:
    with pytest.raises(ValueError) as error:
        settings(teachers[0], made, *said)
    assert message in str(error.value)


def test_other_features_are_not_mixed_with_these(
    made: Path, teachers: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for teacher, more, message in (
        (teachers[1], [], "holds shards made with"),
        (teachers[0], ["epochs=3"], "holds shards made with"),
        (teachers[0], ["data.streaming=true"], "data.streaming must be false for di4c prepare features"),
        (teachers[0], ["out="], "out must be a folder to write to"),
    ):
        with pytest.raises(SystemExit):
            features.main([*arguments(teacher, made), *more])
        assert message in capsys.readouterr().err

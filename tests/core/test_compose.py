"""The command line of the three domains: values by the type of their key, kinds and presets, and a message for each kind of bad input."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from di4c_lm.core.compose import CONFIGS, compose, compose_rounds, help_text, leaves, overrides_of, parse
from di4c_lm.core.settings import build, fields, identity, run_hash, to_dict
from di4c_lm.domains.codes.settings import CodeSettings
from di4c_lm.domains.pixels.settings import PixelSettings
from di4c_lm.domains.text.settings import TextSettings
from di4c_lm.mixtures.class_chain import ClassChainSettings
from di4c_lm.mixtures.sequential import SequentialSettings
from di4c_lm.mixtures.token import TokenSettings

DOMAINS: dict[str, Any] = {"text": TextSettings, "cifar10": PixelSettings, "imagenet": CodeSettings}
PRESETS = [
    (domain, path.relative_to(CONFIGS).parts[0], path.stem)
    for domain in DOMAINS
    for folder in ("*", f"*/{domain}")
    for path in sorted(CONFIGS.glob(f"{folder}/*.yaml"))
    if path.relative_to(CONFIGS).parts[0] != "study"
]
# What trains a network of each domain from a teacher without λ, and from data: SDTT and MDLM's bound need noise that masks.
WITHOUT_LATENT = {"text": ("sdtt", "mdlm"), "cifar10": ("denoising", "denoising"), "imagenet": ("sdtt", "denoising")}
PRESETS = [one for one in PRESETS if one[1:2] != ("objective",) or one[2] in WITHOUT_LATENT[one[0]]]
# What a preset leaves to be said.
MORE = {"shards": ["data.path=x", "eval.skip=true"], "openwebtext": ["eval.skip=true"]}


def text(*overrides: str) -> Any:
    return compose(TextSettings, overrides, CONFIGS, "text")


def domain(name: str, *overrides: str) -> Any:
    return compose(DOMAINS[name], overrides, CONFIGS, name)


@pytest.mark.parametrize("name", DOMAINS)
def test_there_is_one_set_of_defaults(name: str) -> None:
    own = DOMAINS[name]()
    whole = ["data.evaluator_share=0"] if name == "text" else []
    assert (domain(name, "recipe=copula", *whole) == own) is (name != "imagenet"), "whose default is of codes"
    assert domain(name) == domain(name, "recipe=sequential")
    former = {"cifar10": "class_chain", "imagenet": "codes"}
    assert name not in former or domain(name, f"mixture={former[name]}") == own


def test_an_evaluator_that_a_run_trains_has_documents_of_its_own() -> None:
    """Unless another share is said, or nobody reads them."""
    share = {
        "": 0.2,
        "data=corpus.jsonl": 0.2,
        "data.evaluator_share=0.1": 0.1,
        "evaluator=smollm2": 0.0,
        "data=openwebtext data.streaming=true eval.skip=true": 0.0,
    }
    for words, expected in share.items():
        assert domain("text", *words.split()).data.evaluator_share == expected, words


@pytest.mark.parametrize(
    "word", ["mixture=class_chain", "objective.num_lambdas=16", "experiment=minute", "recipe=copula"]
)
def test_the_default_recipe_stands_aside_where_what_it_says_is_said(word: str) -> None:
    assert type(domain("text").mixture) is type(domain("text", "optim.lr=1e-3").mixture) is SequentialSettings
    assert type(domain("text", word).mixture) is ClassChainSettings


@pytest.mark.parametrize("name", DOMAINS)
def test_settings_survive_their_file(name: str) -> None:
    settings = domain(name, "run.name=2026", "teacher=007", "objective.chunk_rows=7", "rounds=[{a: 1}]")
    plain = yaml.safe_load(yaml.safe_dump(json.loads(json.dumps(to_dict(settings)))))
    assert build(DOMAINS[name], plain) == settings


@pytest.mark.parametrize("name, group, preset", PRESETS)
def test_every_preset_composes(name: str, group: str, preset: str) -> None:
    settings = domain(name, f"{group}={preset}", *MORE.get(preset, ()))
    assert settings != DOMAINS[name]() or preset == "copula"
    compose_rounds(settings, [f"{group}={preset}"], CONFIGS, name, Path("outputs/x"))


def test_the_papers_runs_are_the_papers() -> None:
    owt = text("experiment=paper_owt")
    assert (owt.model.num_blocks, owt.model.hidden_size, owt.model.num_heads, owt.data.length) == (12, 768, 12, 1024)
    assert (owt.optim.lr, owt.optim.ema_decay, owt.optim.warmup_steps, owt.optim.clip_norm) == (3e-5, 0.9999, 500, 1)
    assert (owt.objective.num_lambdas, owt.objective.alpha_scale, owt.train.dtype) == (16, 0.1, "bfloat16")
    assert (owt.data.dataset, owt.data.streaming) == ("Skylion007/openwebtext", True)
    assert owt.teacher.path == "kuleshov-group/mdlm-owt"
    cifar = domain("cifar10", "experiment=cifar10_paper", "teacher=here.pt")
    assert (cifar.objective.num_lambdas, cifar.train.micro_batch_size, cifar.train.steps) == (16, 8, 320_000)
    assert (cifar.optim.lr, cifar.optim.ema_decay, cifar.model.multipliers) == (2e-4, 0.9999, (1, 2, 2, 2))
    assert (cifar.teacher.path, cifar.data.source, cifar.data.flip) == ("here.pt", "cifar10", True)
    imagenet = domain("imagenet", "experiment=imagenet_paper")
    assert (imagenet.objective.num_lambdas, imagenet.optim.betas, imagenet.decoding.guidance) == (32, (0.9, 0.96), 3.0)


@pytest.mark.parametrize("name", DOMAINS)
def test_groups_are_alike_on_all_domains(name: str) -> None:
    taught, anew = WITHOUT_LATENT[name]
    assert type(domain(name, f"objective={taught}").objective) is type(text(f"objective={taught}").objective)
    assert isinstance(domain(name, "mixture=token", "objective=di4c").mixture, TokenSettings)
    assert domain(name, "teacher=random").teacher.kind == "random"
    given = domain(name, "teacher=epoch=3-step=1.ckpt", "data=a b/é,ü.bin")
    assert (given.teacher.kind, given.teacher.path) == ("pretrained", "epoch=3-step=1.ckpt")
    assert (given.data.kind, given.data.path) == ("files", "a b/é,ü.bin")
    assert len(compose_rounds(*rounds_of(name, f"{{objective: {anew}}}", f"{{objective: {taught}}}"))) == 2


def rounds_of(name: str, *rounds: str) -> tuple[Any, ...]:
    overrides = [f"rounds=[{', '.join(rounds)}]"]
    return domain(name, *overrides), overrides, CONFIGS, name, Path("outputs/chain")


@pytest.mark.parametrize(
    "value",
    [
        "a=b",
        "it's",
        "a#b",
        "a(b)",
        "日本語",
        "é",
        "~/tok",
        "${oc.env:HOME}",
        "back\\slash",
        "1e5",
        "true",
        "2026-11-25",
        "[1]",
        "{",
        "",
    ],
)
def test_text_is_what_stands_behind_the_first_sign(value: str) -> None:
    assert text(f"run.name={value}").run.name == value
    assert text(f"data.tokenizer={value}").data.tokenizer == value


def test_other_values_are_read_by_their_type() -> None:
    found = text("train.steps=7", "optim.lr=3", "run.dir=null", "eval.steps=[1, 3]", "data.wrap=true", "zero.stage=2")
    assert (found.train.steps, found.optim.lr, found.run.dir) == (7, 3.0, None)
    assert (found.eval.steps, found.data.wrap, found.zero.stage) == ((1, 3), True, 2)
    assert text("optim={lr: 1e-4, betas: [0.5, 0.6]}").optim.betas == (0.5, 0.6)
    assert text("objective={kind: sdtt, dt: 0.25}").objective.dt == 0.25


def test_presets_come_before_overrides_and_of_two_the_more_particular_last() -> None:
    for order in (1, -1):
        found = text(*["optim.lr=1", "experiment=paper_owt", "recipe=di4c", "teacher=sdtt"][::order])
        assert (found.optim.lr, found.optim.mixture_lr_scale) == (1.0, 1.0), "the experiment's recipe comes after"
        assert (found.teacher.path, found.teacher.revision) == ("jdeschena/sdtt", "baselines_kld_step_60000")
        assert found.data.length == 1024
    assert text("experiment=paper_owt", "objective=sdtt").optim.lr == 3e-5, "an experiment's own"
    assert text("objective=sdtt").optim.lr == 1e-3, "an objective's own"
    assert text("experiment=paper_sdtt", "teacher=x").teacher.revision is None
    assert text("train.steps=1", "train.steps=2").train.steps == 2


def test_another_kind_begins_from_its_defaults() -> None:
    recipe = text("recipe=di4c")
    assert text("recipe=di4c", "objective=di4c").objective == recipe.objective
    assert text("recipe=di4c", "mixture=codes").mixture == recipe.mixture
    assert text("recipe=di4c", "objective=sdtt", "objective=di4c").objective.num_lambdas == 16
    assert to_dict(text("recipe=di4c", "objective=sdtt"))["objective"] == to_dict(text("objective=sdtt"))["objective"]


BAD = [
    # unknown keys
    ("train.stpes=5", "there is no key train.stpes, got '5'; did you mean train.steps"),
    ("lr=3", "there is no key lr, got '3'; did you mean optim.lr or teacher.pretrain.lr"),
    ("foo=1", "there is no key foo, got '1'; there are run, mixture"),
    ("train.foo.bar=1", "there is no key train.foo.bar"),
    ("train.steps.x=1", "there is no key train.steps.x"),
    ("train.qq=1", "there is no key train.qq, got '1'; there are train.steps, train.seed"),
    ("nonsense", "an argument must be key=value; --help lists the keys, got 'nonsense'"),
    # wrong types
    ("train.steps=abc", "train.steps must be a whole number, got 'abc'"),
    ("train.steps=1.5", "train.steps must be a whole number, got '1.5'"),
    ("train.steps=true", "train.steps must be a whole number, got 'true'"),
    ("train.seed=99999999999999999999", "train.seed must be a whole number"),
    ("optim.lr=inf", "optim.lr must be a number, got 'inf'"),
    ("eval.steps=1,2", "eval.steps must be a list [...] of whole numbers, got '1,2'"),
    ("data.wrap=1", "data.wrap must be true or false, got '1'"),
    ("zero.stage=7", "zero.stage must be one of 0, 1, 2, 3, got '7'"),
    ("optim=fast", "optim must be one of adamw, muon, got 'fast'"),
    ("optim={lr", "optim must be a mapping {key: value}, got '{lr'"),
    # impossible values
    ("train.steps=0", "train.steps must be at least 1, got 0"),
    ("objective.times.grid_share=2", "objective.times.grid_share must be in [0, 1], got 2.0"),
    ("mixture=token mixture.inject_at=9", "mixture.inject_at must be below model.num_blocks=4, got 9"),
    ("model.hidden_size=30", "model.hidden_size must be a multiple of"),
    ("data.validation_share=1.0", "data.validation_share must be in (0, 1), got 1.0"),
    ("teacher=pretrained", "teacher.path must be a folder, file or hub name where teacher.kind=pretrained, got null"),
    # kinds and presets
    ("objective=di5c", "objective must be one of likelihood, di4c, sdtt, mdlm, denoising, got 'di5c'"),
    ("objective.kind=di5c", "objective.kind must be one of likelihood, di4c, sdtt, mdlm, denoising, got 'di5c'"),
    ("teacher.kind=x", "teacher.kind must be one of train, pretrained, random, got 'x'"),
    (
        "experiment=nothing",
        "experiment must be one of a2d_qwen, chain_copula, chain_sdtt, dream_7b, llada_8b, minute, paper_owt, paper_sdtt, got 'nothing'",
    ),
    ("experiment=cifar10_paper", "experiment must be one of a2d_qwen"),
    ("study=markov", "there is no key study"),
    # keys without effect
    ("objective.dt=0.5", "there is no key objective.dt, got '0.5'; it is one of objective=sdtt"),
    ("data.path=c.jsonl", "data.path must be left out where data.kind=builtin; data=<path> reads files, got 'c.jsonl'"),
    ("data.dataset=foo", "data.dataset must be left out where data.kind=builtin, got 'foo'"),
    (
        "teacher.path=ckpt",
        "teacher.path must be left out where teacher.kind=train; teacher=<path> reads one, got 'ckpt'",
    ),
    ("wandb.project=x", "wandb.project must be left out where wandb.mode=disabled, got 'x'"),
    ("objective=sdtt mixture=token", "mixture must be left out where objective=sdtt, got 'token'"),
    ("objective=sdtt mixture.codebook_size=1", "mixture.codebook_size must be left out where objective=sdtt, got '1'"),
    ("objective=mdlm teacher=x", "teacher must be left out where objective=mdlm, got 'x'"),
    (
        "teacher=x model.hidden_size=64",
        "model.hidden_size must be left out where a teacher is given, whose shape it is",
    ),
    ("data=c.jsonl data.dataset=foo", "data.dataset must be left out where data.kind=files, got 'foo'"),
    ("evaluator.path=gpt2 evaluator.num_blocks=2", "evaluator.num_blocks must be left out where evaluator.path=gpt2"),
    ("teacher=random teacher.pretrain.steps=3", "teacher.pretrain.steps must be left out where teacher.kind=random"),
    ("data.tokenizer=gpt2 data.vocab_size=300", "data.vocab_size must be left out where the tokenizer is given"),
    # old keys
    ("lambda.path=token", "lambda.path=token is mixture=token now"),
    ("lambda.codebook_size=4", "lambda.codebook_size is mixture.codebook_size now, got '4'"),
    ("judge.path=gpt2", "judge.path is evaluator.path now, got 'gpt2'"),
    ("eval.seed=1", "eval.seed is eval.seeds now, got '1'"),
    ("objective=di4c_codes", "objective=di4c_codes is recipe=di4c now"),
    ("lambda.trunk=frozen", "lambda.trunk=frozen is mixture.freeze_backbone=true now"),
    (
        "objective.lead_steps=9",
        "objective.lead_steps is gone (objective=likelihood learns from the likelihood alone), got",
    ),
    # keys of a kind that is not chosen
    ("sampler.inner=confidence", "there is no key sampler.inner, got 'confidence'; it is one of sampler=blocks"),
    (
        "sampler=remasking sampler.size=1",
        "there is no key sampler.size, got '1'; it is one of sampler=predictor_corrector",
    ),
    # the word at fault is named, whatever stands beside it
    ("data=c.jsonl train.stpes=5", "there is no key train.stpes"),
    ("teacher=path/to/mdlm lr=3", "there is no key lr"),
    ("teacher=sdtt data=c.jsonl eval.steps=1,2", "eval.steps must be"),
]


@pytest.mark.parametrize("overrides, message", BAD)
def test_bad_input_names_the_key_and_no_other(overrides: str, message: str) -> None:
    with pytest.raises(ValueError, match="(?s).") as caught:
        text(*overrides.split())
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "name, override, message",
    [
        (
            "cifar10",
            "mixture=adaln",
            "mixture must be token, codes, class_chain or sequential for a U-Net, got 'adaln'",
        ),
        ("cifar10", "model.width=6", "model.width must be a multiple of 4, at least 4, got 6"),
        ("cifar10", "chain.min_time=1", "chain.min_time must be in [0, 1), got 1.0"),
        ("cifar10", "mixture.codebook_size=0", "mixture.codebook_size must be at least 1, got 0"),
        ("cifar10", "data.source=x", "data.source is data now, got 'x'"),
        ("cifar10", "data=patches data.levels=16", "data.levels must be left out where data.kind=patches"),
        ("cifar10", "data=x.npz data.crop=true", "data.size must be at least 1 where crop=true, got null"),
        ("cifar10", "experiment=paper_owt", "experiment must be one of cifar10_paper, cifar10_patches, cifar10_small"),
        ("imagenet", "vqgan.path=x codec.patch=4", "codec.patch must be left out where vqgan.path is given"),
        ("imagenet", "vqgan.model.ch=8", "vqgan.model.ch is gone (codec makes the codes, or vqgan.path), got '8'"),
        ("imagenet", "codec.size.x=1", "there is no key codec.size.x, got '1'; there are run, mixture"),
        ("imagenet", "vqgan.model.n_embed=16", "vqgan.model.n_embed is codec.num_codes now"),
        ("imagenet", "teacher=x teacher.label_drop=0.2", "teacher.label_drop must be left out where teacher.kind="),
        ("imagenet", "teacher.num_heads=4", "teacher.num_heads must be left out where teacher.kind=train"),
    ],
)
def test_bad_input_of_images(name: str, override: str, message: str) -> None:
    with pytest.raises(ValueError, match="(?s).") as caught:
        domain(name, *override.split())
    assert str(caught.value).startswith(message)


def test_a_preset_names_itself_where_it_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "loop.yaml").write_text("recipe: loop\n")
    (tmp_path / "recipe" / "list.yaml").write_text("- 1\n")
    for name, message in (("loop", "must not come before itself"), ("list", "must be a mapping")):
        with pytest.raises(ValueError, match=f"{name}.yaml.*{message}"):
            compose(TextSettings, [f"recipe={name}"], tmp_path, "text")


# Rounds


def test_rounds_say_what_sets_them_apart() -> None:
    settings, overrides, *rest = rounds_of(
        "text", "{objective: mdlm}", "{objective: sdtt, objective.dt: 0.125}", "{objective: sdtt}", "{train.seed: 9}"
    )
    rounds = compose_rounds(settings, ["train.steps=3", *overrides], *rest)
    assert [one.train.steps for one in rounds] == [3] * 4
    assert [one.train.seed for one in rounds] == [0, 1, 2, 9]
    assert [one.run.dir for one in rounds] == [f"outputs/chain/round_{number}" for number in (1, 2, 3, 4)]
    assert [(one.objective.dt, one.objective.round) for one in rounds[1:3]] == [(0.125, 1), (0.125, 2)]
    assert all(one.rounds == () for one in rounds) and rounds[3].objective == settings.objective


@pytest.mark.parametrize(
    "rounds, message",
    [
        (
            ["{objective: di5c}"],
            "rounds[0]: objective must be one of likelihood, di4c, sdtt, mdlm, denoising, got 'di5c'",
        ),
        (["{objective: mdlm}", "{objective: sdtt, objective.dt: 1}"], "rounds[1]: objective.dt"),
        (
            ["{objective: mdlm, mixture.codebook_size: 1}"],
            "rounds[0]: mixture.codebook_size must be left out where objective=mdlm",
        ),
    ],
)
def test_bad_rounds_are_named(rounds: list[str], message: str) -> None:
    with pytest.raises(ValueError, match="rounds") as caught:
        compose_rounds(*rounds_of("text", *rounds))
    assert str(caught.value).startswith(message)


def test_an_override_of_a_chain_needs_an_effect_in_one_of_its_rounds() -> None:
    settings, overrides, *rest = rounds_of("text", "{objective: mdlm}", "{objective: likelihood}")
    compose_rounds(settings, ["mixture.codebook_size=8", *overrides], *rest)
    settings, overrides, *rest = rounds_of("text", "{objective: mdlm}", "{objective: sdtt}")
    with pytest.raises(ValueError, match=r"mixture\.codebook_size must be left out where objective=mdlm"):
        compose_rounds(settings, ["mixture.codebook_size=8", *overrides], *rest)


# Identity and help


def test_what_is_in_no_hash() -> None:
    unnamed = run_hash(text())
    for override in (
        "run.name=a",
        "wandb.mode=offline",
        "train.log_every=3",
        "zero.stage=1",
        "eval.skip=true",
        "train.resume=never",
        "train.steps=900",
    ):
        assert run_hash(text(override)) == unnamed
    for override in (
        "train.seed=1",
        "optim.lr=1",
        "mixture.codebook_size=3",
        "objective=sdtt",
        "data.length=32",
        "teacher=x",
    ):
        assert run_hash(text(override)) != unnamed
    assert "mixture" not in identity(text("objective=sdtt"))


@pytest.mark.parametrize("name", DOMAINS)
def test_help_is_alike_on_all_domains(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(
            DOMAINS[name],
            ["--help", "--local_rank=0", f"objective={WITHOUT_LATENT[name][0]}"],
            CONFIGS,
            name,
            program="deepspeed launch/x.py",
        )
    out = capsys.readouterr().out
    assert ended.value.code == 0 and out.startswith("usage: deepspeed launch/x.py [key=value ...]\n")
    for line in (
        f"objective={WITHOUT_LATENT[name][0]}",
        "  objective.dt=0.0009765625" if name != "cifar10" else "  objective.label_drop=0.0",
        "  train.steps=",
        "  zero.stage=0",
        "  run.name=null",
        "experiment=",
    ):
        assert f"\n{line}" in out
    assert ("cifar10_paper" in out, "paper_owt" in out) == (name == "cifar10", name == "text")
    keys = [line for line in out.partition("Keys, ")[2].splitlines() if line.startswith("  ")]
    assert len(keys) > 60


def test_bad_input_ends_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(TextSettings, ["train.steps=-1"], CONFIGS, "text", program="")
    assert ended.value.code == 2
    assert capsys.readouterr() == ("", "error: train.steps must be at least 1, got -1\n")


@pytest.mark.parametrize("name", DOMAINS)
def test_every_key_and_every_kind_has_a_line_of_help(name: str) -> None:
    lines = list(leaves(DOMAINS[name]()))
    for key, one in fields(DOMAINS[name]).items():
        for kind, made in (one.registry or {}).items():
            lines += [(f"{key}={kind}.{below}", value, field) for below, value, field in leaves(made())]
    assert [key for key, _, one in lines if not one.is_section and not one.help] == []
    shown = help_text(DOMAINS[name](), CONFIGS, name, "x").partition("Keys, ")[0].splitlines()
    assert [line for line in shown if line.startswith("  ") and len(line.split()) < 2] == []


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        (["--train.steps", "5", "seed=1"], ["train.steps=5", "seed=1"]),
        (["--train.steps=5"], ["train.steps=5"]),
        (["--show-steps", "prompt=a b"], ["show_steps=true", "prompt=a b"]),
        (["--json", "--top-p", "0.9"], ["json=true", "top_p=0.9"]),
        (["--prompt", "-1"], ["prompt=-1"]),
        (["a=--b", "c"], ["a=--b", "c"]),
        (["--local_rank=0", "-h", "a=1", "--help"], ["a=1"]),
        ([], []),
    ],
)
def test_options_are_said_in_the_ways_that_people_type_them(said: list[str], meant: list[str]) -> None:
    assert overrides_of(said) == meant

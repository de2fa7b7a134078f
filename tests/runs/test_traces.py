"""Exact losses of tiny runs: a refactoring reproduces them; a change of the mathematics updates `traces.json` and says why.

They are those of the code from before the package was rebuilt. It had no k-means of patches: the ImageNet run reads the codes of a VQGAN of
random weights. A student that begins as its teacher has rounding errors for its first losses, which Adam blows up: `optim.eps` and large
first effects of λ leave losses that differ by at most 3e-5 from CPU to CPU.
"""

import json
from pathlib import Path

import pytest
import torch

from di4c_lm.checkpoints.vqgan import save_vqgan
from di4c_lm.domains.codes.domain import DOMAIN as CODES
from di4c_lm.domains.pixels.domain import DOMAIN as PIXELS
from di4c_lm.domains.text.domain import DOMAIN as TEXT
from di4c_lm.networks.vqgan import VqGan, VqganConfig
from di4c_lm.runs import recipe
from di4c_lm.runs.folder import parse_run
from tests.runs.helpers import metrics

TRACES = json.loads(Path(__file__).with_name("traces.json").read_text())
DOMAINS = {"text": TEXT, "cifar10": PIXELS, "imagenet": CODES}
TINY = {
    "text": (
        "model.hidden_size=32 model.num_blocks=2 model.num_heads=2 model.cond_dim=16 data.length=16 data.vocab_size=300 "
        "data.evaluator_share=0"
    ),
    "cifar10": "model.width=8",
    "imagenet": "model.hidden_size=32 model.num_blocks=2 model.mlp_size=32",
}
# How the teachers of these runs were trained.
TEACHER = {
    "text": "teacher.pretrain.optim=adamw teacher.pretrain.lr=1e-3 teacher.pretrain.times=iid teacher.pretrain.weight_power=1 "
    "teacher.pretrain.matmul_dtype=same"
}
ALL = (
    "teacher.pretrain.steps=4 teacher.pretrain.batch_size=8 train.steps=5 train.micro_batch_size=4 train.log_every=1 "
    "optim.warmup_steps=2 eval.skip=true run.threads=1 run.device=cpu"
)


def corpus(path: Path) -> str:
    """Two hundred small documents, the same under every Python."""
    rows = [{"text": f"document {i}: " + " ".join(str(i * k % 97) for k in range(1, 40))} for i in range(200)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return f"data={path}"


def vqgan(path: Path) -> str:
    """A VQGAN of random weights for the digits."""
    sizes = {"n_embed": 64, "embed_dim": 8, "z_channels": 16, "resolution": 8, "ch": 8, "norm_groups": 8}
    config = VqganConfig(**sizes, in_channels=1, out_ch=1, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_vqgan(path, VqGan(config).eval())
    return f"vqgan.path={path}"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What a domain's runs share: its data, and where the teacher that all of them have is kept."""
    folder = tmp_path_factory.mktemp("data")
    cache = f"run.cache_dir={folder / 'cache'}"
    return {
        "text": [corpus(folder / "docs.jsonl"), cache],
        "cifar10": [cache],
        "imagenet": [vqgan(folder / "vqgan"), cache],
    }


@pytest.mark.parametrize("name", TRACES)
def test_a_run_has_the_losses_it_always_had(name: str, data: dict[str, list[str]], tmp_path: Path) -> None:
    trace = TRACES[name]
    kind = trace["domain"]
    words = [*trace["words"], *data[kind], *TINY[kind].split(), *ALL.split(), *TEACHER.get(kind, "").split()]
    words.append(f"run.dir={tmp_path}")
    settings, rounds = parse_run(DOMAINS[kind], words, program="test")
    assert recipe.run(DOMAINS[kind], settings, rounds) == 0
    assert [row["loss"] for row in metrics(tmp_path)] == pytest.approx(trace["losses"], rel=1e-6, abs=1e-4)


@pytest.mark.parametrize("name", ["text, likelihood", "cifar10", "cifar10, sequential", "imagenet"])
def test_the_losses_are_the_same_where_parameters_are_shared_out(
    name: str, data: dict[str, list[str]], tmp_path: Path
) -> None:
    """ZeRO-3 sees every use of a parameter, whatever the network and the mixture."""
    trace = TRACES[name]
    kind = trace["domain"]
    words = [*trace["words"], *data[kind], *TINY[kind].split(), *ALL.split(), *TEACHER.get(kind, "").split()]
    words += [f"run.dir={tmp_path}", "zero.stage=3"]
    settings, rounds = parse_run(DOMAINS[kind], words, program="test")
    assert recipe.run(DOMAINS[kind], settings, rounds) == 0
    assert [row["loss"] for row in metrics(tmp_path)] == pytest.approx(trace["losses"], rel=1e-4, abs=1e-4)


def test_products_in_bfloat16_are_the_same_where_parameters_are_shared_out(
    data: dict[str, list[str]], tmp_path: Path
) -> None:
    """Of weights in float32, Muon's among them; and not those of float32."""
    losses = {}
    for name, words in {
        "whole": ["objective.matmul_dtype=bfloat16"],
        "shared": ["objective.matmul_dtype=bfloat16", "zero.stage=3"],
        "float32": [],
    }.items():
        words = [
            "objective=mdlm",
            "optim=muon",
            *words,
            *data["text"],
            *TINY["text"].split(),
            f"run.dir={tmp_path / name}",
        ]
        words += [word for word in ALL.split() if not word.startswith("teacher.")]
        settings, rounds = parse_run(TEXT, words, program="test")
        assert recipe.run(TEXT, settings, rounds) == 0
        losses[name] = [row["loss"] for row in metrics(tmp_path / name)]
    assert losses["shared"] == pytest.approx(losses["whole"], rel=2e-6)
    assert losses["float32"] == pytest.approx(losses["whole"], rel=1e-3)
    assert losses["float32"] != pytest.approx(losses["whole"], rel=2e-6)

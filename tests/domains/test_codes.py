"""A VQGAN and a transformer that belong together, or do not; drawing images of classes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from di4c_lm.checkpoints import maskgit
from di4c_lm.checkpoints.vqgan import save_vqgan
from di4c_lm.checkpoints.weights import Weights
from di4c_lm.core.compose import CONFIGS, compose
from di4c_lm.data.images.codes import save_codes
from di4c_lm.data.images.patch_codec import PatchCodec, PatchCodecConfig
from di4c_lm.domains.codes.domain import DOMAIN, CodeModel, encode_images, fingerprint, to_images, to_planes
from di4c_lm.domains.codes.settings import CodeSettings, ImageDataConfig, VqganSource
from di4c_lm.domains.domain import FinishedRun
from di4c_lm.domains.images import samplers
from di4c_lm.mixtures.adaln import AdaLNSettings
from di4c_lm.mixtures.base import MixtureSettings, NoMixture
from di4c_lm.networks.maskgit import MaskGit, MaskGitConfig
from di4c_lm.networks.vqgan import VqGan, VqganConfig
from di4c_lm.runs import recipe
from di4c_lm.samplers.registry import SAMPLERS
from di4c_lm.training.distributed import World

CODES, NUM_CLASSES = 5, 3


def coder(*, n_embed: int = CODES, seed: int = 0, resolution: int = 4) -> VqGan:
    config = VqganConfig(
        n_embed=n_embed, embed_dim=4, z_channels=4, resolution=resolution, in_channels=1, out_ch=1, ch=8, ch_mult=(1, 1),
        num_res_blocks=1, attn_resolutions=(), norm_groups=4,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return VqGan(config).eval()


def denoiser(mixture: MixtureSettings = NoMixture()) -> Any:  # noqa: B008
    config = MaskGitConfig(hidden_size=8, num_blocks=1, num_heads=2, mlp_size=8)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        sizes = {"num_codes": CODES, "num_classes": NUM_CLASSES, "length": 4}
        return mixture.fresh(MaskGit, config, sizes).eval()


def test_bytes_there_and_back() -> None:
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    assert np.array_equal(to_images(to_planes(images)), images)
    assert np.array_equal(to_images(to_planes(np.array([[[[0], [16]]]], dtype=np.uint8), levels=17)).ravel(), [0, 255])


@pytest.mark.parametrize(
    "mixture", [NoMixture(), AdaLNSettings(distribution="codebook", inject_at=-1, codebook_size=4)]
)
def test_a_model_is_saved_with_its_vqgan(tmp_path: Path, mixture: MixtureSettings) -> None:
    model = CodeModel(denoiser=denoiser(mixture), codec=coder(), schedule="cosine")
    model.save_pretrained(tmp_path)
    loaded = CodeModel.from_pretrained(tmp_path)
    assert loaded.schedule == "cosine" and fingerprint(loaded.codec) == fingerprint(model.codec)
    ours, theirs = (one.sample_codes(torch.tensor([0, 2, 1]), 2, seed=3)[0] for one in (model, loaded))
    assert torch.equal(ours, theirs)
    with pytest.raises(ValueError, match="trained on the codes of the codec"):
        CodeModel.from_pretrained(tmp_path, coder(seed=5))


def test_a_model_is_saved_with_its_patch_codec(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    codec = PatchCodec.fit(
        to_planes(rng.integers(0, 256, (9, 4, 4, 1), dtype=np.uint8)), PatchCodecConfig(num_codes=CODES)
    )
    model = CodeModel(denoiser=denoiser(), codec=codec)
    model.save_pretrained(tmp_path)
    loaded = CodeModel.from_pretrained(tmp_path)
    assert isinstance(loaded.codec, PatchCodec) and fingerprint(loaded.codec) == fingerprint(codec)
    codes = model.sample_codes(torch.tensor([0, 2]), 2, seed=0)[0]
    assert np.array_equal(loaded.decode(codes), model.decode(codes))
    with pytest.raises(ValueError, match="trained on the codes of the codec"):
        CodeModel.from_pretrained(tmp_path, coder())


def test_a_published_file_needs_its_vqgan(tmp_path: Path) -> None:
    maskgit.write(tmp_path / "x.pth", Weights.of(denoiser()))
    save_vqgan(tmp_path / "coder", coder())
    loaded = CodeModel.from_pretrained(tmp_path / "x.pth", tmp_path / "coder")
    assert loaded.process.mask_id == CODES and loaded.schedule == "arccos"
    with pytest.raises(ValueError, match="expected the codec of this transformer in codec/ or vqgan/, found none"):
        CodeModel.from_pretrained(tmp_path / "x.pth")


@pytest.mark.parametrize("change", [{"n_embed": 7}, {"resolution": 8}])
def test_a_codebook_that_does_not_match(change: dict[str, int]) -> None:
    with pytest.raises(
        ValueError, match="the codec makes .* the transformer reads 5 codes, 4 an image: they do not belong"
    ):
        CodeModel(denoiser=denoiser(), codec=coder(**change))


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_images_do_not_depend_on_their_batch(steps: int) -> None:
    model = CodeModel(denoiser=denoiser(), codec=coder())
    labels = np.array([0, 1, 2, 0, 1])
    many, calls = model.images(5, steps, 7, labels)
    few, calls_of_few = model.images(5, steps, 7, labels, batch_size=2)
    assert many.shape == (5, 4, 4, 1) and many.dtype == np.uint8
    assert np.array_equal(many, few)
    assert calls == calls_of_few <= steps
    assert model.facts["schedule"] == "arccos"


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "tau_leaping"])
def test_samplers_go_by_name_and_any_of_them_is_guided(name: str) -> None:
    model = CodeModel(denoiser=denoiser(), codec=coder())
    codes, nfe = model.sample_codes(torch.tensor([0, 2]), 2, seed=0, sampler=name)
    assert codes.shape == (2, 4) and int(codes.max()) < CODES
    _, guided = model.sample_codes(
        torch.tensor([0, 2]), 2, seed=0, sampler=name, guidance=1.0, guidance_ramp="constant"
    )
    assert nfe < guided


def test_codes_of_images_decode_to_the_reconstruction() -> None:
    net = coder()
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 1), dtype=np.uint8)
    codes = encode_images(net, images, batch_size=2)
    with torch.no_grad():
        expected = to_images(net(to_planes(images))[0])
    model = CodeModel(denoiser=denoiser(), codec=net)
    assert np.array_equal(model.decode(torch.from_numpy(codes), batch_size=2), expected)


def test_what_cannot_be_drawn_is_refused() -> None:
    model = CodeModel(denoiser=denoiser(), codec=coder())
    with pytest.raises(ValueError, match="class must be 0 to 2, or -1 for none, got 3"):
        model.sample_codes(torch.tensor([0, 3]), 2, seed=0)
    with pytest.raises(ValueError, match="guidance must be 0 where no condition"):
        model.sample_codes(None, 2, seed=0, num_samples=2, guidance=2.0)
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
        model.sample_codes(None, 2, seed=0)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        model.sample_codes(torch.tensor([0]), 0, seed=0)
    with pytest.raises(ValueError, match="schedule must be one of root, linear, square, cosine, arccos, got 'flat'"):
        CodeModel(denoiser=denoiser(), codec=coder(), schedule="flat")
    with pytest.raises(ValueError, match="codes: expected 0 to 4, got 5 to 5"):
        model.decode(torch.full((1, 4), CODES))


TINY = (
    "model.hidden_size=16",
    "model.num_blocks=2",
    "model.mlp_size=16",
    "teacher.pretrain.steps=2",
    "train.log_every=1",
    "train.micro_batch_size=2",
    "train.steps=2",
    "eval.skip=true",
    "run.device=cpu",
    "run.threads=1",
)
CLASSES = ("mixture=class_chain", "mixture.codebook_size=5", "objective=likelihood")


def test_a_run_makes_codes_a_teacher_and_a_student_of_them(tmp_path: Path) -> None:
    words = [
        *TINY,
        f"run.dir={tmp_path / 'run'}",
        f"run.cache_dir={tmp_path / 'cache'}",
    ]
    config = compose(CodeSettings, [*words, *CLASSES], CONFIGS, "imagenet")
    assert recipe.run(DOMAIN, config) == 0
    kinds = {path.name for path in (tmp_path / "cache").iterdir()}
    assert {"codecs", "codes", "teachers"} <= kinds
    finished = FinishedRun.read(tmp_path / "run")
    before, after = (load_file(path / "model.safetensors") for path in finished.models.values())
    assert all(torch.equal(after[name], value) for name, value in before.items()), "the backbone is the teacher's"
    assert float(after["latent_head.table"].softmax(1).amax(1).max()) > 0.9, "a code has a class"
    for drawer in samplers(finished, 8, "cpu"):
        assert (drawer.facts["sampler"], drawer.facts["settings"]["choice_temperature"]) == ("confidence", 4.5)
        assert drawer.sample(3, 2, 0, None)[0].shape == (3, 8, 8, 1)


def test_codes_of_another_vqgan_and_a_teacher_of_other_classes_are_refused(tmp_path: Path) -> None:
    save_codes(
        tmp_path / "codes", np.zeros((3, 4), dtype=np.int64), np.zeros(3, dtype=np.int64), num_codes=CODES,
        classes=("a",), codec=fingerprint(coder()), made_by={},
    )  # fmt: skip
    save_vqgan(tmp_path / "vqgan", coder())
    save_vqgan(tmp_path / "other", coder(seed=5))

    def config(**vqgan: Any) -> CodeSettings:
        return CodeSettings(
            data=ImageDataConfig(kind="files", path=str(tmp_path / "codes")), vqgan=VqganSource(**vqgan)
        )

    world = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
    with pytest.raises(ValueError, match="vqgan.path must be the VQGAN that made the codes"):
        DOMAIN.data(config(), world, tmp_path)
    with pytest.raises(ValueError, match="codes of the VQGAN .*, vqgan.path is"):
        DOMAIN.data(config(path=str(tmp_path / "other")), world, tmp_path)
    chosen = config(path=str(tmp_path / "vqgan"))
    data = DOMAIN.data(chosen, world, tmp_path)
    assert data.images is None and data.source(0).read(0, 2).x.shape == (2, 4)
    CodeModel(denoiser=denoiser(), codec=coder()).save_pretrained(tmp_path / "teacher")
    with pytest.raises(ValueError, match="its network has 3 classes, .* 1"):
        DOMAIN.read(tmp_path / "teacher", chosen, data)


@pytest.mark.parametrize(
    "words", [["objective=sdtt", "objective.dt=0.125"], ["objective=mdlm", "schedule=linear"], ["objective=denoising"]]
)
def test_objectives_on_masks_train_on_codes_too(tmp_path: Path, words: list[str]) -> None:
    places = [f"run.dir={tmp_path / 'run'}", f"run.cache_dir={tmp_path / 'cache'}"]
    needless = () if words[0] == "objective=sdtt" else ("teacher.pretrain.steps=2",)
    own = [word for word in TINY if word not in needless]
    assert recipe.run(DOMAIN, compose(CodeSettings, [*own, *places, *words], CONFIGS, "imagenet")) == 0
    assert FinishedRun.read(tmp_path / "run").models.keys() == ({"student"} if needless else {"teacher", "student"})


def test_the_bound_of_mdlm_wants_its_own_schedule() -> None:
    with pytest.raises(
        ValueError, match="objective must be denoising, or schedule linear, where schedule=arccos, got 'mdlm'"
    ):
        compose(CodeSettings, ["objective=mdlm"], CONFIGS, "imagenet")

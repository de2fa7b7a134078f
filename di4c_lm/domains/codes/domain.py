"""Images as codes: a VQGAN, a masked process on its codes, MaskGIT's transformers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from di4c_lm.checkpoints.vqgan import load_vqgan, save_vqgan
from di4c_lm.core.cache import WORK, Cache, key_of
from di4c_lm.core.settings import to_dict
from di4c_lm.data.batches import BatchStream, first_sequences
from di4c_lm.data.images.codes import load_codes, save_codes
from di4c_lm.data.images.images import ImageSource, Split
from di4c_lm.data.records.shards import Shards, ShardSource, is_shards
from di4c_lm.domains.codes.model import CodeModel, encode_images, fingerprint, load_images, to_planes
from di4c_lm.domains.codes.settings import CodeSettings
from di4c_lm.domains.domain import FinishedRun, Interrupted, Pretraining
from di4c_lm.measure.images.report import ImageReportConfig
from di4c_lm.networks.maskgit import MaskGit
from di4c_lm.networks.vqgan import VqGan
from di4c_lm.objectives.denoising import Denoising
from di4c_lm.objectives.vqgan import VqganObjective, start_codebook
from di4c_lm.training.distributed import World
from di4c_lm.training.loop import train
from di4c_lm.training.settings import OptimConfig, TrainConfig, ZeroConfig

_START_IMAGES = 512  # whose encodings the codebook starts from


@dataclass(frozen=True, kw_only=True)
class CodeData:
    """Codes, the VQGAN they come from, and where they were made here the images."""

    codes: Shards
    vqgan: VqGan
    images: Split | None

    @property
    def fingerprint(self) -> str:
        """Of the codes and the VQGAN."""
        return f"{self.codes.fingerprint} {self.codes.index.coder}"

    def source(self, seed: int) -> ShardSource:
        """The codes of the training images, with their classes."""
        return ShardSource(self.codes, seed)

    def first_sequences(self, seed: int) -> Int64[Tensor, "N D"]:
        """The codes row by row."""
        return first_sequences(self.source(seed), self.codes.index.length)

    def save(self, folder: Path) -> None:
        """Nothing: the images are read again."""


class CodeDomain:
    """See `Domain`."""

    name = "imagenet"
    settings = CodeSettings
    model = CodeModel
    pretraining = Pretraining(objective=Denoising(times="iid"), sections=("model", "schedule"), ema_decay=0.99)

    def data(self, settings: CodeSettings, world: World, cache_dir: Path) -> CodeData:
        """A folder of codes; or images and the codes that a VQGAN makes of them, which is trained where none is named."""
        path, cache = Path(settings.data.source).expanduser(), Cache(cache_dir, world)
        if is_shards(path):
            if settings.vqgan.path is None:
                raise ValueError(f"vqgan.path must be the VQGAN that made the codes {path}, got None")
            codes, vqgan = load_codes(path), load_vqgan(settings.vqgan.path)
            if codes.index.coder != fingerprint(vqgan):
                raise ValueError(f"{path}: codes of the VQGAN {codes.index.coder}, vqgan.path is {fingerprint(vqgan)}")
            return CodeData(codes=codes, vqgan=vqgan, images=None)
        images = load_images(settings)
        vqgan = find_vqgan(settings, images, world, cache)
        key = key_of(fingerprint(vqgan), images.train.fingerprint)
        folder = cache.entry("codes", key, lambda folder: encode(folder, vqgan, images))
        return CodeData(codes=load_codes(folder), vqgan=vqgan, images=images)

    def network(self, settings: CodeSettings, data: CodeData) -> MaskGit:
        """A transformer on the VQGAN's codes and the images' classes."""
        index = data.codes.index
        return MaskGit(settings.model, num_codes=index.num_states, num_classes=len(index.classes), length=index.length)

    def read(self, path: Path | str, settings: CodeSettings, data: CodeData) -> CodeModel:
        """A folder of ours, or a `.pth` of MaskGIT-pytorch or Di4C, of as many classes as the images have."""
        heads, codes = settings.teacher.num_heads, settings.teacher.num_codes
        model = CodeModel.from_pretrained(
            path, data.vqgan, num_heads=heads, num_codes=codes, schedule=settings.schedule
        )
        found, wanted = model.denoiser.num_classes, len(data.codes.index.classes)
        if found != wanted:
            raise ValueError(f"{path}: its network has {found} classes, {data.codes.folder} {wanted}")
        return model

    def wrap(self, network: Any, settings: CodeSettings, data: CodeData) -> CodeModel:
        """With the data's VQGAN and the configured schedule."""
        return CodeModel(denoiser=network, vqgan=data.vqgan, schedule=settings.schedule)

    def report(self, run: FinishedRun, settings: ImageReportConfig | None = None, data: CodeData | None = None) -> str:
        """FID and its kin of the run's models; nothing where of the images only the codes are at hand."""
        from di4c_lm.domains.codes.report import report

        if data is not None and data.images is None:
            return "no report: of the images only the codes are at hand"
        return report(run, settings, None if data is None else data.images)


def encode(folder: Path, vqgan: VqGan, images: Split) -> None:
    """Write the codes of the training images."""
    train = images.train
    rows = encode_images(vqgan, train.images, levels=train.levels)
    facts = {"num_codes": vqgan.num_codes, "classes": train.classes, "codec": fingerprint(vqgan)}
    save_codes(folder, rows, train.labels, made_by={"source": train.name}, **facts)


def find_vqgan(config: CodeSettings, split: Split, world: World, cache: Cache) -> VqGan:
    """The VQGAN that is named, or one trained on the images, in the cache under the hash of all that shapes it."""
    if config.vqgan.path is not None:
        return load_vqgan(config.vqgan.path)
    model, pretrain, images = config.vqgan.model, config.vqgan.pretrain, split.train
    expected = (model.resolution, model.resolution, model.in_channels)
    if images.shape != expected or model.out_ch != model.in_channels:
        raise ValueError(
            f"vqgan.model reads images of {expected} and writes {model.out_ch} channels, those of {config.data.source} are {images.shape}"
        )

    def make(folder: Path) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(pretrain.seed)
            network = VqGan(model)
        first = to_planes(images.images[:: max(1, len(images) // _START_IMAGES)], images.levels)
        start_codebook(network, first, torch.Generator().manual_seed(pretrain.seed))
        micro = pretrain.batch_size // world.size
        trained = train(
            VqganObjective(network, images.shape, images.levels, usage=config.vqgan.usage),
            BatchStream(
                ImageSource(images, pretrain.seed), micro_batch_size=micro, rank=world.rank, world_size=world.size
            ),
            train=TrainConfig(steps=pretrain.steps, micro_batch_size=micro, save_every=500, seed=pretrain.seed),
            optim=OptimConfig(lr=pretrain.lr, warmup_steps=min(100, pretrain.steps), schedule="cosine", ema_decay=0.99),
            zero=ZeroConfig(),
            run_dir=folder / WORK,
            device=config.run.device,
            label="vqgan",
        )
        if trained.progress.signal:
            raise Interrupted(trained.progress.signal)
        if world.is_main:
            network = network.cpu().float()
            network.load_state_dict(trained.ema)
            save_vqgan(folder, network)

    key = key_of(to_dict(model), to_dict(pretrain), config.vqgan.usage, images.fingerprint)
    return load_vqgan(cache.entry("vqgans", key, make, together=True))


DOMAIN = CodeDomain()

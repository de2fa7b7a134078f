"""Images as codes: a codec, a masked process on its codes, MaskGIT's transformers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Int64
from torch import Tensor

from di4c_lm.core.cache import Cache, key_of
from di4c_lm.core.settings import to_dict
from di4c_lm.data.batches import first_sequences
from di4c_lm.data.images.codes import load_codes, save_codes
from di4c_lm.data.images.images import Split
from di4c_lm.data.images.patch_codec import PatchCodec
from di4c_lm.data.records.shards import Shards, ShardSource, is_shards
from di4c_lm.domains.codes.model import Codec, CodeModel, encode_images, fingerprint, load_codec, to_planes
from di4c_lm.domains.codes.settings import CodeSettings
from di4c_lm.domains.domain import FinishedRun, Pretraining
from di4c_lm.domains.images import load_images, report
from di4c_lm.measure.images.report import ImageReportConfig
from di4c_lm.networks.maskgit import MaskGit
from di4c_lm.objectives.denoising import Denoising
from di4c_lm.training.distributed import World


@dataclass(frozen=True, kw_only=True)
class CodeData:
    """Codes, the codec they come from, and where they were made here the images."""

    codes: Shards
    codec: Codec
    images: Split | None

    @property
    def fingerprint(self) -> str:
        """Of the codes and the codec."""
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
        """A folder of codes; or images and the codes that a VQGAN makes of them, or k-means of their patches where none is named."""
        path, cache = Path(settings.data.source).expanduser(), Cache(cache_dir, world)
        if is_shards(path):
            if settings.vqgan.path is None:
                raise ValueError(f"vqgan.path must be the VQGAN that made the codes {path}, got None")
            codes, codec = load_codes(path), load_codec(settings.vqgan.path)
            if codes.index.coder != fingerprint(codec):
                raise ValueError(f"{path}: codes of the VQGAN {codes.index.coder}, vqgan.path is {fingerprint(codec)}")
            return CodeData(codes=codes, codec=codec, images=None)
        images = load_images(settings)
        codec = find_codec(settings, images, cache)
        key = key_of(fingerprint(codec), images.train.fingerprint)
        train = images.train

        def make(folder: Path) -> None:
            rows = encode_images(codec, train.images, levels=train.levels)
            facts = {"num_codes": codec.num_codes, "classes": train.classes, "codec": fingerprint(codec)}
            save_codes(folder, rows, train.labels, made_by={"source": train.name}, **facts)

        return CodeData(codes=load_codes(cache.entry("codes", key, make)), codec=codec, images=images)

    def network(self, settings: CodeSettings, data: CodeData) -> MaskGit:
        """A transformer on the codec's codes and the images' classes."""
        index = data.codes.index
        return MaskGit(settings.model, num_codes=index.num_states, num_classes=len(index.classes), length=index.length)

    def read(self, path: Path | str, settings: CodeSettings, data: CodeData) -> CodeModel:
        """A folder of ours, or a `.pth` of MaskGIT-pytorch or Di4C, of as many classes as the images have."""
        heads, codes = settings.teacher.num_heads, settings.teacher.num_codes
        model = CodeModel.from_pretrained(
            path, data.codec, num_heads=heads, num_codes=codes, schedule=settings.schedule
        )
        found, wanted = model.denoiser.num_classes, len(data.codes.index.classes)
        if found != wanted:
            raise ValueError(f"{path}: its network has {found} classes, {data.codes.folder} {wanted}")
        return model

    def wrap(self, network: Any, settings: CodeSettings, data: CodeData) -> CodeModel:
        """With the data's codec and the configured schedule."""
        return CodeModel(denoiser=network, codec=data.codec, schedule=settings.schedule)

    def report(self, run: FinishedRun, settings: ImageReportConfig | None = None, data: CodeData | None = None) -> str:
        """FID and its kin of the run's models; nothing where of the images only the codes are at hand."""
        if data is not None and data.images is None:
            return "no report: of the images only the codes are at hand"
        return report(run, settings, None if data is None else data.images)


def find_codec(settings: CodeSettings, images: Split, cache: Cache) -> Codec:
    """The VQGAN that is named; else k-means of the training images' patches, from the cache under the hash of all that shapes it."""
    if settings.vqgan.path is not None:
        return load_codec(settings.vqgan.path)
    train = images.train

    def make(folder: Path) -> None:
        PatchCodec.fit(to_planes(train.images, train.levels), settings.codec).save(folder)

    return PatchCodec.load(cache.entry("codecs", key_of(1, to_dict(settings.codec), train.fingerprint), make))


DOMAIN = CodeDomain()

"""Images as codes: a codec, a masked process on its codes, MaskGIT's transformers."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from numpy import ndarray
from torch import Tensor

from di4c_lm.checkpoints import own
from di4c_lm.checkpoints.files import CONFIG_FILE
from di4c_lm.checkpoints.load import find, read_checkpoint
from di4c_lm.checkpoints.vqgan import load_vqgan, save_vqgan
from di4c_lm.core.cache import Cache, key_of
from di4c_lm.core.settings import to_dict
from di4c_lm.data.batches import first_sequences
from di4c_lm.data.images.codes import load_codes, save_codes
from di4c_lm.data.images.images import Split
from di4c_lm.data.images.patch_codec import PatchCodec, is_patch_codec
from di4c_lm.data.records.shards import Shards, ShardSource, is_shards
from di4c_lm.domains.codes.settings import CodeSettings
from di4c_lm.domains.domain import FinishedRun, Pretraining
from di4c_lm.domains.images import image_checks, load_images, report
from di4c_lm.domains.probabilities import Probabilities
from di4c_lm.measure.images.report import ImageReportConfig
from di4c_lm.networks.maskgit import MaskGit, check_classes
from di4c_lm.networks.vqgan import VqGan
from di4c_lm.objectives.denoising import Denoising
from di4c_lm.processes.masked import MASKGIT_SCHEDULES, MaskedProcess
from di4c_lm.samplers.grids import make_grid
from di4c_lm.samplers.trajectory import Decoding, Sampler, sample_keyed
from di4c_lm.training.distributed import World

Codec = VqGan | PatchCodec
VQGAN, CODEC = "vqgan", "codec"  # the folder beside the transformer's, by what is in it
SCHEDULE = "arccos"


def to_planes(images: UInt8[ndarray, "N H W C"], levels: int = 256) -> Tensor:
    """Images of states 0..levels - 1 as (N, C, H, W) float32 in [-1, 1]."""
    planes_NCHW = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    return planes_NCHW.float() * (2 / (levels - 1)) - 1


def to_images(planes: Tensor) -> UInt8[ndarray, "N H W C"]:
    """Bytes of (N, C, H, W) in [-1, 1]: no rescaling of each image by itself."""
    bytes_NCHW = ((planes.clamp(-1, 1) + 1) * 127.5).round().to("cpu", torch.uint8)
    return bytes_NCHW.permute(0, 2, 3, 1).contiguous().numpy()


def fingerprint(network: torch.nn.Module) -> str:
    """Sixteen hex digits that stand for all weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def load_codec(path: Path | str) -> Codec:
    """A VQGAN, as `load_vqgan` reads it, or a folder of a `PatchCodec`."""
    folder = Path(path).expanduser()
    return PatchCodec.load(folder) if is_patch_codec(folder) else load_vqgan(path)


def _device_of(codec: Codec) -> torch.device:
    return next(iter(codec.state_dict().values())).device


@torch.no_grad()
def encode_images(
    codec: Codec, images: UInt8[ndarray, "N H W C"], *, levels: int = 256, batch_size: int = 64
) -> Int64[ndarray, "N D"]:
    """The codes of images. Raises `ValueError` for another size."""
    device = _device_of(codec)
    rows = [
        codec.encode(to_planes(images[start : start + batch_size], levels).to(device)).cpu()
        for start in range(0, len(images), batch_size)
    ]
    return torch.cat(rows).numpy()


@dataclass(frozen=True, kw_only=True)
class CodeModel(Probabilities):
    """A transformer on codes with the codec they come from, as written by `save_pretrained`.

    `schedule` is one of `MASKGIT_SCHEDULES`. Raises `ValueError` where the two do not belong together, and for an unknown schedule.
    """

    denoiser: Any  # a MaskGit, or a mixture on one
    codec: Codec
    schedule: str = SCHEDULE
    usual_sampler: ClassVar[str] = CodeSettings.usual_sampler

    def __post_init__(self) -> None:
        made, read_ = (f"{one.num_codes} codes, {one.length} an image" for one in (self.codec, self.denoiser))
        if made != read_:
            raise ValueError(f"the codec makes {made}, the transformer reads {read_}: they do not belong together")
        if self.schedule not in MASKGIT_SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(MASKGIT_SCHEDULES)}, got {self.schedule!r}")

    @property
    def process(self) -> MaskedProcess:
        """The masked process on the codes, MASK last."""
        return MaskedProcess(self.denoiser.mask_id, MASKGIT_SCHEDULES[self.schedule])

    def save_pretrained(
        self, folder: Path | str, state: Mapping[str, Tensor] | None = None, *, backbone: str | None = None
    ) -> None:
        """Write the transformer, and the codec below it; see `Model`."""
        if isinstance(self.codec, PatchCodec):
            name = CODEC
            self.codec.save(Path(folder) / name)
        else:
            name = VQGAN
            save_vqgan(Path(folder) / name, self.codec)
        extra = {"schedule": self.schedule, name: fingerprint(self.codec)}
        own.save(folder, self.denoiser, state=state, extra=extra, backbone=backbone)

    @classmethod
    def from_pretrained(
        cls,
        source: Path | str,
        codec: Codec | Path | str | None = None,
        *,
        num_heads: int | None = None,
        num_codes: int | None = None,
        schedule: str | None = None,
        device: torch.device | str = "cpu",
    ) -> "CodeModel":
        """What `save_pretrained` wrote; or a `.pth` of MaskGIT-pytorch or Di4C with its `codec`, a VQGAN, in eval mode.

        Raises `ValueError` as the readers do, for a codec that is not the one it was saved with, and where none is named.
        """
        path = find(source)
        saved = (path / name for name in (CODEC, VQGAN) if (path / name / CONFIG_FILE).is_file())
        beside = next(saved, None) if codec is None else codec
        if beside is None:
            raise ValueError(
                f"{path}: expected the codec of this transformer in {CODEC}/ or {VQGAN}/, found none: name it"
            )
        weights = read_checkpoint(path, "codes", num_heads=num_heads, num_codes=num_codes)
        used = load_codec(beside) if isinstance(beside, Path | str) else beside
        known = weights.extra.get(CODEC, weights.extra.get(VQGAN))
        if known is not None and known != fingerprint(used):
            raise ValueError(
                f"{path}: trained on the codes of the codec {known}, the one in use has the fingerprint {fingerprint(used)}"
            )
        return cls(
            denoiser=weights.build(path).to(device),
            codec=used.to(device),
            schedule=schedule or weights.extra.get("schedule", SCHEDULE),
        )

    def sample_codes(
        self,
        labels: Int64[Tensor, " N"] | None,
        steps: int,
        *,
        seed: int,
        num_samples: int = 0,
        batch_size: int = 64,
        sampler: Sampler | str = usual_sampler,
        grid: str | Sequence[float] = "uniform",
        teacher: "CodeModel | None" = None,
        on_step: Callable[[Int64[Tensor, "B D"]], None] | None = None,
        **decoding: Any,
    ) -> tuple[Int64[Tensor, "N D"], float]:
        """Codes of an image of each class in `labels`, or of `num_samples` images of no class told; and the mean NFE.

        `sampler` is an object or a name, `grid` a name of `make_grid` or times. `teacher` takes the last `hybrid_last` steps; `decoding`
        are fields of `Decoding`. Image n depends on (seed, n) alone, whatever the batch size. Raises `ValueError` for classes out of range,
        guidance without classes, and sizes and settings that do not fit.
        """
        if labels is not None:
            check_classes(labels, self.denoiser.num_classes)
        found = sample_keyed(
            self.denoiser,
            self.process,
            (num_samples if labels is None else len(labels), self.denoiser.length),
            make_grid(grid, steps),
            seed=seed,
            batch_size=batch_size,
            sampler=sampler,
            decoding=Decoding(**decoding),
            cond=labels,
            teacher=None if teacher is None else teacher.denoiser,
            device=next(self.denoiser.parameters()).device,
            on_step=on_step,
        )
        return found.x, found.nfe

    def sample(
        self, num_samples: int = 1, *, steps: int = 8, seed: int = 0, labels: Sequence[int] | None = None, **how: Any
    ) -> UInt8[ndarray, "N H W C"]:
        """Images as bytes, decoded from sampled codes.

        Args:
            num_samples: how many images, where no `labels` are given.
            steps: network calls for each, but for samplers that count them otherwise.
            seed: image n depends on it and on n alone.
            labels: the class of each image, one image for each; absent, images without a class.
            how: `sampler`, `grid`, `teacher` and fields of `Decoding` such as `guidance`, as `sample_codes` takes them.

        Returns:
            (N, rows, columns, channels), 0 to 255.

        Raises:
            ValueError: sizes or settings that do not fit, classes out of range, or guidance without classes.
        """
        classes = None if labels is None else np.asarray(labels, dtype=np.int64)
        return self.images(num_samples, steps, seed, classes, **how)[0]

    def decode(self, codes: Int64[Tensor, "N D"], *, batch_size: int = 64) -> UInt8[ndarray, "N H W C"]:
        """The images of codes. Raises `ValueError` for codes that are none."""
        device = _device_of(self.codec)
        return np.concatenate([to_images(self.codec.decode(rows.to(device))) for rows in codes.split(batch_size)])

    def state_images(self, states: Int64[Tensor, "N D"]) -> UInt8[ndarray, "N H W 4"]:
        """The images of states along the way, in colour and opacity: nothing is seen where a code is masked."""
        masked_ND = self.process.unknown(states)
        images = self.decode(torch.where(masked_ND, 0, states))
        height, width = images.shape[1:3]
        side = math.isqrt(height * width // states.shape[1])  # pixels along a side of what one code stands for
        shown = (~masked_ND).view(-1, height // side, width // side, 1).cpu().numpy().astype(np.uint8) * 255
        colours = np.broadcast_to(images, (*images.shape[:3], 3))
        return np.concatenate([colours, shown.repeat(side, 1).repeat(side, 2)], 3)

    def images(
        self, num: int, steps: int, seed: int, labels: Int64[ndarray, " N"] | None, **how: Any
    ) -> tuple[UInt8[ndarray, "N H W C"], float]:
        """Images of asked classes, and the mean NFE, as reports on images ask for them; `how` goes to `sample_codes`."""
        classes = None if labels is None else torch.from_numpy(labels)
        codes_ND, nfe = self.sample_codes(classes, steps, seed=seed, num_samples=num, **how)
        return self.decode(codes_ND), nfe

    @property
    def facts(self) -> dict[str, Any]:
        """What a report says of it beside its sampler."""
        return {
            "schedule": self.schedule,
            "weights": fingerprint(self.denoiser),
            "codec": fingerprint(self.codec),
        }

    @property
    def num_classes(self) -> int:
        """Those that can be asked for."""
        return self.denoiser.num_classes


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
    pretraining = Pretraining(objective=Denoising(), sections=("model", "schedule"), ema_decay=0.99)

    def checks(self, settings: CodeSettings) -> dict[str, Callable[[], object]]:
        """See `Domain.checks`."""
        return image_checks(settings, "codes")

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

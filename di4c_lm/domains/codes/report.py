"""What a finished run on images as codes is measured by: teacher and student drawing images of asked classes by confidence."""

from pathlib import Path

from di4c_lm.core import image_cli
from di4c_lm.core.files import read_json
from di4c_lm.core.settings import to_dict
from di4c_lm.data.images.image_files import Fit
from di4c_lm.data.images.image_sources import load_split
from di4c_lm.data.images.images import Split
from di4c_lm.data.records.codes import is_code_folder
from di4c_lm.domains.codes.model import CodeDrawer, CodeModel
from di4c_lm.domains.codes.settings import ImagenetConfig, ImagenetEvalConfig
from di4c_lm.measure.images.report import ImageReportConfig, ImageRun
from di4c_lm.samplers.registry import make_sampler
from di4c_lm.samplers.trajectory import Decoding

SETTINGS, PARTS, STUDENT = "config.yaml", "parts.json", "student"


def load_images(config: ImagenetConfig) -> Split:
    """The images that `config.data` names. Raises `ValueError` as the readers do, and for a folder of codes, which holds none."""
    path, told = Path(config.data.path).expanduser(), config.data
    if is_code_folder(path):
        raise ValueError(f"data.path={told.path!r} holds codes: allowed here are the images that they were made of")
    fit = Fit(size=(told.size, told.size) if told.size else None, channels=told.channels, crop=told.crop)
    share = told.validation_share
    return load_split(told.path, seed=config.train.seed, validation_share=share, fit=fit, skip_bad=told.skip_bad)


def load_run(run_dir: Path, settings: ImageReportConfig, device: str) -> ImageRun:
    """A finished run from its folder, as `eval/images.py` measures it. Raises `ValueError` where the folder lacks a part."""
    import yaml

    lacking = [name for name in (SETTINGS, PARTS, STUDENT) if not (run_dir / name).exists()]
    if lacking:
        raise ValueError(f"{run_dir}: expected the folder of a finished run, but it has no {', '.join(lacking)}")
    config = image_cli.from_dict(ImagenetConfig, yaml.safe_load((run_dir / SETTINGS).read_text()))
    student = CodeModel.from_pretrained(run_dir / STUDENT, device=device)
    given = {"num_heads": config.teacher.num_heads, "num_codes": config.teacher.num_codes}
    path = Path(read_json(run_dir / PARTS)["teacher"])
    teacher = CodeModel.from_pretrained(path, student.vqgan, schedule=config.schedule, device=device, **given)
    return image_run(run_dir, config, teacher, student, load_images(config), path, settings.batch_size)


def image_run(
    run_dir: Path,
    config: ImagenetConfig,
    teacher: CodeModel,
    student: CodeModel,
    images: Split,
    teacher_path: Path,
    batch_size: int,
) -> ImageRun:
    """Both models with the sampler that `config.eval` describes, ready to be measured."""
    told = config.eval
    confidence = {"choice_temperature": told.choice_temperature, "counts": told.counts}
    how = {
        "sampler": make_sampler("confidence", confidence),
        "decoding": Decoding(temperature=told.temperature, guidance=told.guidance),
        "batch_size": batch_size,
    }
    return ImageRun(
        folder=run_dir,
        samplers=[
            CodeDrawer(name=name, model=model, **how) for name, model in (("teacher", teacher), ("student", student))
        ],
        images=images,
        config=to_dict(config),
        checkpoints={"teacher": teacher_path, "student": run_dir / STUDENT},
        dtypes={"teacher": "float32", "student": "float32"},
        cache_dir=image_cli.cache_dir(config.run),
    )


def settings_of(told: ImagenetEvalConfig) -> ImageReportConfig:
    """The closing report's settings, as `eval/images.py` takes them."""
    shared = ("steps", "num_samples", "seeds", "batch_size", "features", "against", "bootstrap", "grid")
    return ImageReportConfig(**{name: getattr(told, name) for name in shared})

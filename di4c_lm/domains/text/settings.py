"""Settings of a run on text. Times are in [0, 1] (1 is pure noise), sizes in tokens or sequences, learning rates per optimiser step."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar

from di4c_lm.checkpoints.files import CONFIG_FILE
from di4c_lm.checkpoints.load import stated_length, stated_mask
from di4c_lm.core.settings import Ints, check, kind_of, section, setting, unit
from di4c_lm.data.text.settings import DataConfig
from di4c_lm.data.text.tokenizers import has_tokenizer
from di4c_lm.domains.domain import STUDENT
from di4c_lm.domains.settings import RunSettings, TeacherConfig, TeacherPretrainConfig, closing
from di4c_lm.measure.text.evaluator import EvaluatorConfig
from di4c_lm.measure.text.gen_ppl import GenPplConfig
from di4c_lm.measure.text.responses import ResponsesConfig
from di4c_lm.mixtures.registry import MIXTURES
from di4c_lm.networks.dit import DitConfig
from di4c_lm.objectives.registry import OBJECTIVES
from di4c_lm.processes.uniform import UniformProcess
from di4c_lm.samplers.trajectory import check_process
from di4c_lm.samplers.usual import resolved
from di4c_lm.training.settings import OptimConfig, PretrainConfig, TrainConfig

_EVALUATOR_SHARE = 0.2  # of the documents, where an evaluator is trained


@section
class TextPretrainConfig(TeacherPretrainConfig):
    """How the run trains its teacher itself, where none is given: by MDLM's objective."""

    weight_power: float = setting(0.0, "power of 1/t that weighs a masked token, see objective.weight_power")

    def __post_init__(self) -> None:
        super().__post_init__()
        unit(self, "weight_power")


@section
class TextTeacherConfig(TeacherConfig):
    """The teacher: the network that is distilled."""

    PATH_KEYS: ClassVar[tuple[str, ...]] = ("path", "weights", "revision")

    pretrain: TextPretrainConfig = setting(
        TextPretrainConfig(steps=900, lr=1e-2, optim="muon", warmup_steps=30, times="bell", matmul_dtype="auto")
    )
    revision: str | None = setting(None, "branch, tag or commit of a teacher on the hub")

    def unused(self) -> dict[str, str]:
        """Those of any teacher, and the revision with the path."""
        found = super().unused()
        return found | ({"revision": found["path"]} if "path" in found else {})


@section
class EvalConfig:
    """The closing report of a run."""

    skip: bool = setting(False, "end without a report")
    steps: Ints = setting((1, 2, 4, 8, 16), "numbers of sampling steps that are compared")
    num_samples: int = setting(128, "texts sampled for each model and number of steps")
    batch_size: int = setting(64, "sequences sampled at once")
    seeds: Ints = setting((0,), "random seed of sampling: a list of one")
    bootstrap: int = setting(1000, "bootstrap resamples for each 95 % interval")

    def __post_init__(self) -> None:
        check(len(self.seeds) == 1 and self.seeds[0] >= 0, "seeds", self.seeds, "one seed of at least 0")


@section
class TextSettings(RunSettings):
    """A run on text, or with `rounds` a chain of them: a corpus, a teacher, a student, a report."""

    DEFAULT_RECIPE: ClassVar[str] = "sequential"
    STUDENTS_OWN: ClassVar[tuple[str, ...]] = ("dropout", "attention")
    OLD_KEYS: ClassVar[Mapping[str, str]] = {
        **RunSettings.OLD_KEYS,
        "judge": "evaluator",
        "data.judge_share": "data.evaluator_share",
        "eval.seed": "eval.seeds",
    }

    data: DataConfig = setting(DataConfig())
    model: DitConfig = setting(DitConfig(cond_dim=64))
    optim: OptimConfig = setting(OptimConfig(lr=1e-2, schedule="cosine", ema_decay=0.99))
    train: TrainConfig = setting(TrainConfig(steps=200, micro_batch_size=16, save_every=100))
    teacher: TextTeacherConfig = setting(TextTeacherConfig())
    evaluator: EvaluatorConfig = setting(
        EvaluatorConfig(num_blocks=3, dropout=0.0, pretrain=PretrainConfig(steps=150, lr=1e-2, optim="muon"))
    )
    eval: EvalConfig = setting(EvalConfig(), identity=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.closing_report()
        if self.model.process == "uniform" and self.teacher.kind != "pretrained":
            made = self.objective.needs_teacher and self.teacher.kind == "train"
            allowed = "random or a path where model.process=uniform; objective=denoising trains such a model"
            check(not made, "teacher.kind", self.teacher.kind, allowed)
            self.check_uniform("model.process=uniform")
        self.check_records()
        if self.data.kind == "features":
            self.check_features("where data.kind=features")
        path, skip = self.evaluator.path, self.eval.skip
        allowed = (
            "a folder or hub name, or eval.skip=true, where data.streaming=true, or data.kind is shards or features"
        )
        needless = self.data.at_hand or self.data.records != "text" or skip
        check(path != "train" or needless, "evaluator.path", path, allowed)

    def check_records(self) -> None:
        """Raise `ValueError` where records with prompts go with none of the other settings: all of them ask for plain text."""
        data, objective = self.data, self.objective
        if data.records == "text":
            return
        where = f"where data.records={data.records}"
        fits = data.is_prepared or data.kind == "files"
        check(fits, "data.kind", data.kind, f"files, shards or features {where}")
        apart = data.packing and not data.joined and objective.takes_mixture
        kind = kind_of(MIXTURES, self.mixture)
        allowed = f"class_chain {where} and data.packing=true, or data.joined=true: λ of the others is one of a whole sequence"
        check(not apart or kind == "class_chain", "mixture", kind, allowed)
        check(data.evaluator_share == 0, "data.evaluator_share", data.evaluator_share, f"0 {where}")
        for name, allowed in (("positions", "masked"), ("distil_inputs", "shared")):
            found = getattr(objective, name, allowed)
            check(found == allowed, f"objective.{name}", found, f"{allowed} {where}")

    def check_features(self, where: str) -> None:
        """Raise `ValueError` where anything but a head behind a frozen teacher is asked for, which reads features that were made before."""
        objective, mixture, kind = self.objective, self.mixture, kind_of(MIXTURES, self.mixture)
        name, given = kind_of(OBJECTIVES, objective), self.teacher.kind == "pretrained"
        check(name == "likelihood", "objective", name, f"likelihood {where}")
        check(objective.init == "teacher", "objective.init", objective.init, f"teacher {where}")
        weight = objective.marginal_weight
        check(weight == 0, "objective.marginal_weight", weight, f"0 {where}: the teacher is not run")
        of_any = " or ".join(one for one, entry in MIXTURES.items() if getattr(entry, "reads_features", False))
        check(mixture.reads_features, "mixture", kind, f"{of_any} {where}")
        check(mixture.freeze_backbone, "mixture.freeze_backbone", mixture.freeze_backbone, f"true {where}")
        check(given, "teacher.kind", self.teacher.kind, f"a path, that of the teacher of the features, {where}")
        check(self.model.dropout == 0, "model.dropout", self.model.dropout, f"0 {where}, which were made without")

    @property
    def usual_sampler(self) -> str:
        """The student's, by name, where none is said: see `Usual`."""
        return self.mixture.usual_sampler if self.objective.takes_mixture else "ancestral"

    def check_uniform(self, why: str) -> None:
        """Raise `ValueError` where the objective, the mixture or the sampler takes masked noise alone; `why` says what is uniform."""
        objective, kind = kind_of(OBJECTIVES, self.objective), kind_of(MIXTURES, self.mixture)
        of_any = ", ".join(name for name in OBJECTIVES if name not in ("sdtt", "mdlm"))
        check(objective not in ("sdtt", "mdlm"), "objective", objective, f"one of {of_any} where {why}")
        of_any = ", ".join(name for name in MIXTURES if name != "sequential")
        asked = self.objective.takes_mixture and kind == "sequential"
        check(not asked, "mixture", kind, f"one of {of_any} where {why}")
        check(self.data.records == "text", "data.records", self.data.records, f"text where {why}, which keeps no token")
        check_process(resolved(self.sampler, self), UniformProcess, self.decoding)

    def unused(self) -> dict[str, str]:
        """Those of any run, and the state that no text has."""
        found = {"model.impossible": "where the tokenizer says which state is none of a text", **super().unused()}
        reason = f"where data.records={self.data.records}, whose report has no evaluator"
        return found | ({} if self.data.records == "text" else {"evaluator": reason})

    def implied(self, said: Collection[str]) -> dict[str, Any]:
        """What nobody said: a share of the documents for an evaluator that is trained; tokenizer, length and mask of a given teacher.

        Of teachers only folders on this machine are looked at.
        """
        found: dict[str, Any] = {}
        if self.evaluator.path == "train" and self.data.at_hand and self.data.records == "text":
            found["data.evaluator_share"] = _EVALUATOR_SHARE
        return {key: value for key, value in (found | self._of_teacher(said)).items() if key not in said}

    def _of_teacher(self, said: Collection[str]) -> dict[str, Any]:
        """The tokenizer, the length and of a decoder the mask of a given teacher that has them."""
        folder = Path(self.teacher.path or "").expanduser()
        if self.teacher.kind != "pretrained" or not folder.is_dir():
            return {}
        folder = folder / STUDENT if (folder / STUDENT / CONFIG_FILE).is_file() else folder
        found: dict[str, Any] = {}
        if has_tokenizer(folder) and "data.vocab_size" not in said:
            found["data.tokenizer"] = str(folder)
            if (mask_id := stated_mask(folder)) is not None:
                found["data.mask_id"] = mask_id
        length = stated_length(folder)
        if length is not None:
            found["data.length"] = length
        return found

    def responses_report(self) -> ResponsesConfig:
        """The closing report's settings of a run on records with prompts, as `di4c eval responses` takes them."""
        return closing(self, ResponsesConfig, seed=self.eval.seeds[0])

    def closing_report(self) -> GenPplConfig:
        """The closing report's settings, as `di4c eval gen_ppl` takes them."""
        of_evaluator = {f"evaluator_{name}": getattr(self.evaluator, name) for name in ("batch_size", "download")}
        return closing(self, GenPplConfig, seed=self.eval.seeds[0], **of_evaluator)

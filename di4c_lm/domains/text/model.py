"""Text: a masked or uniform process on tokens, DiT networks, their checkpoints and tokenizers, and how they write."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int64
from torch import Tensor

from di4c_lm.checkpoints import own
from di4c_lm.checkpoints.files import read_safetensors
from di4c_lm.checkpoints.load import find, read_checkpoint
from di4c_lm.checkpoints.weights import Weights
from di4c_lm.core.settings import check, to_dict
from di4c_lm.data.text.packing import token_id
from di4c_lm.data.text.pairs import templated
from di4c_lm.data.text.tokenizers import fingerprint, read_tokenizer, save_tokenizer, with_mask
from di4c_lm.domains.domain import FinishedRun, sampling
from di4c_lm.domains.probabilities import Probabilities
from di4c_lm.measure.text.samples import TextRun
from di4c_lm.processes.masked import MaskedProcess
from di4c_lm.processes.rng import KeyedRng
from di4c_lm.processes.uniform import UniformProcess
from di4c_lm.samplers.grids import grid_for
from di4c_lm.samplers.registry import fit_context
from di4c_lm.samplers.trajectory import Decoding, OnBatch, OnScored, Sampler, sample_keyed
from di4c_lm.samplers.usual import resolved

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from transformers import PreTrainedTokenizerFast

    from di4c_lm.checkpoints.weights import WhichWeights

VALIDATION, EVALUATOR = "validation.safetensors", "evaluator"  # in a run's folder
GIVEN = "given"  # among what the former holds: how many tokens of each validation sequence are given, of records with prompts
TOKENIZER_KEY = "tokenizer"  # in a checkpoint's extra: the fingerprint of the tokenizer that it was trained with
_GRID_TRAJECTORIES = 16  # on which a grid is optimised
_GRID_KEYS, _PRIOR_KEYS = 2**40, 2**41  # the numbers of those, and of uniform noise, apart from those of samples


@dataclass(frozen=True, kw_only=True)
class TextModel(Probabilities):
    """A denoiser of text with its tokenizer, as written by `save_pretrained`."""

    denoiser: Any  # a DIT or a decoder, or what stands in for one
    tokenizer: "PreTrainedTokenizerFast"
    length: int  # D, tokens a sequence

    @property
    def usual_sampler(self) -> str:
        """The sampler, by name, where none is said."""
        return getattr(self.denoiser, "usual_sampler", "ancestral")

    @property
    def process(self) -> MaskedProcess | UniformProcess:
        """The network's process on the tokenizer's ids: the masked one, or with Duo the uniform one."""
        found = getattr(self.denoiser, "process", None)
        return MaskedProcess(self.denoiser.mask_id) if found is None else found

    @property
    def mask_id(self) -> int:
        """The id of MASK. Raises `ValueError` for a model of uniform noise, which knows none."""
        process = self.process
        if isinstance(process, UniformProcess):
            raise ValueError(
                "model must be of masked noise where positions are hidden (prompts, bounds), got one of uniform noise, as Duo's"
            )
        return process.mask_id

    def save_pretrained(
        self, folder: Path | str, state: "Mapping[str, Tensor] | None" = None, *, backbone: str | None = None
    ) -> None:
        """Write `model.safetensors`, `config.json` and the tokenizer; `state` holds the weights where the network's own are not meant.

        With `backbone`, the path of its teacher as seen from `folder`, a mixture over a frozen teacher is written without it.
        """
        extra = {TOKENIZER_KEY: fingerprint(self.tokenizer)}
        own.save(folder, self.denoiser, length=self.length, extra=extra, state=state, backbone=backbone)
        save_tokenizer(self.tokenizer, Path(folder))

    @classmethod
    def from_pretrained(cls, source: Path | str, *, device: torch.device | str = "cpu") -> "TextModel":
        """The model that `save_pretrained` wrote to a folder, or pushed to the hub under a name, in eval mode.

        Raises `ValueError` for an absent, truncated or foreign checkpoint, or a tokenizer that is not the one it was saved with.
        """
        folder = find(source)
        weights = read_checkpoint(folder)
        tokenizer = read_tokenizer(str(folder), f"{source}: its tokenizer")
        return cls._of(weights, tokenizer, source, device)

    @classmethod
    def from_checkpoint(
        cls,
        source: Path | str,
        tokenizer: "PreTrainedTokenizerFast",
        *,
        revision: str | None = None,
        weights: "WhichWeights" = "ema",
        device: torch.device | str = "cpu",
    ) -> "TextModel":
        """A checkpoint in any of the field's formats with the tokenizer it was trained with, in eval mode.

        Raises `ValueError` as `read_checkpoint` does, or where the tokenizer has another number of states.
        """
        found = read_checkpoint(source, revision=revision, weights=weights)
        return cls._of(found, tokenizer, source, device)

    @classmethod
    def _of(
        cls,
        weights: Weights,
        tokenizer: "PreTrainedTokenizerFast",
        source: Path | str,
        device: torch.device | str,
    ) -> "TextModel":
        if (mask_id := weights.sizes.get("mask_id")) is not None:
            tokenizer = with_mask(tokenizer, mask_id, f"{source}: its tokenizer")
        weights = fitted(weights, tokenizer, source)
        denoiser = weights.build(source, keep_dtype=True).to(device)
        return cls(denoiser=denoiser, tokenizer=tokenizer, length=weights.sizes["length"])

    def to(self, device: torch.device | str) -> "TextModel":
        """The same model, its network moved to `device`."""
        self.denoiser.to(device)
        return self

    def push_to_hub(self, name: str, **options: Any) -> str:
        """Upload what `save_pretrained` writes to the hub repository `name`, with a card; see `checkpoints.push.push_to_hub`.

        The card of a model that is pushed from its run's folder, by that function, says also what it was made from and what was measured.
        """
        from tempfile import TemporaryDirectory

        from di4c_lm.checkpoints.push import push_to_hub

        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return push_to_hub(Path(folder), name, **options)

    def encode_prompts(
        self, prompts: list[str], num_samples: int, *, length: int | None = None
    ) -> Int64[Tensor, "N D"]:
        """Starting sequences: each of the prompts in turn, `num_samples` times over, then MASK.

        A prompt may itself hold the tokenizer's mask token, where text is to be filled in. Raises `ValueError` for a prompt that is no
        text, or longer than the sequence, and for a model of uniform noise, which keeps no token as it is.
        """
        length = length or self.length
        x_ND = torch.full((len(prompts) * num_samples, length), self.mask_id)
        for row, prompt in enumerate(prompt for prompt in prompts for _ in range(num_samples)):
            whole = not any("\ud800" <= letter <= "\udfff" for letter in prompt)
            check(whole, "prompt", prompt[:60], "valid Unicode, without surrogates")
            ids = self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
            if len(ids) > length:
                raise ValueError(f"prompt of {len(ids)} tokens exceeds the sequence of {length}: {prompt[:60]!r}")
            x_ND[row, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
        return x_ND

    def chat_prompt(self, message: str) -> str:
        """A user's message as the tokenizer's chat template puts it before an answer, to be sampled from as a prompt.

        Raises `ValueError` for a tokenizer without a template, and for a template that fails.
        """
        return templated(self.tokenizer, [{"role": "user", "content": message}], add_generation_prompt=True)

    def begin(
        self, prompts: Sequence[str], num_samples: int, *, length: int | None = None, seed: int = 0
    ) -> Int64[Tensor, "N D"]:
        """Sequences at t = 1: `encode_prompts`, or of uniform noise its prior, of which sequence n depends on (seed, n) alone.

        Raises `ValueError` as `encode_prompts` does.
        """
        if self.masks or any(prompts):
            return self.encode_prompts(list(prompts), num_samples, length=length)
        count = len(prompts) * num_samples
        rng = KeyedRng(seed, _PRIOR_KEYS + torch.arange(count))
        return self.process.prior(count, length or self.length, rng, torch.device("cpu"))

    def sample(
        self,
        num_samples: int = 1,
        *,
        steps: int = 8,
        prompt: str | Sequence[str] = "",
        length: int | None = None,
        seed: int = 0,
        **how: Any,
    ) -> list[str]:
        """Texts, `num_samples` of each prompt; a prompt may hold the tokenizer's mask token where text is to be filled in.

        Examples:
            >>> model = di4c_lm.load("outputs/stories")
            >>> texts = model.sample(2, steps=4, prompt="Once upon")
            >>> [text.startswith("Once upon") for text in texts]
            [True, True]

        Args:
            num_samples: texts of each prompt.
            steps: network calls, or what the sampler makes of them.
            prompt: how the texts begin: one, or several.
            length: tokens; absent, the model's context. More takes `sampler="blocks"`.
            seed: text n depends on it and on n alone.
            how: see `sample_tokens`.

        Raises:
            ValueError: a prompt that does not fit, or settings as `sample_tokens` refuses them.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        x_init = self.begin(prompts, num_samples, length=length, seed=seed)
        tokens_ND, _ = self.sample_tokens(len(x_init), steps, seed=seed, x_init=x_init, **how)
        return self.tokenizer.batch_decode(tokens_ND)

    def encode(self, texts: str | Sequence[str]) -> Int64[Tensor, "N D"]:
        """The tokens of texts, as `logits` and `log_prob` take them: a row each, filled up with MASK to the model's length.

        Examples:
            >>> model = di4c_lm.load("outputs/stories")
            >>> x = model.encode("Once upon a time")
            >>> model.logits(x).shape == (1, model.length, len(model.tokenizer))  # log p(x_0 | x_t = x) at each position
            True
            >>> bool(model.log_prob(x) < 0)  # log p of the text's tokens, jointly, in one call, nothing known
            True

        Raises `ValueError` for a text that is longer.
        """
        return self.encode_prompts([texts] if isinstance(texts, str) else list(texts), 1)

    def sample_tokens(
        self,
        num_samples: int,
        steps: int,
        *,
        seed: int,
        batch_size: int = 64,
        x_init: Int64[Tensor, "N D"] | None = None,
        sampler: "Sampler | str" = "usual",
        grid: "str | Sequence[float]" = "uniform",
        teacher: "TextModel | None" = None,
        on_step: "Callable[[Int64[Tensor, 'B D']], None] | None" = None,
        on_scored: OnScored | None = None,
        on_batch: OnBatch | None = None,
        **decoding: Any,
    ) -> tuple[Int64[Tensor, "N D"], float]:
        """Tokens of `num_samples` sequences, and the mean NFE.

        `x_init` (N, D) holds what is given, MASK elsewhere; of uniform noise it is the noise. `sampler` is an object or a name, `usual`
        this model's own, `grid` a name of `make_grid`, times, or one optimised on this model: `optimised` the best of `steps` steps,
        `fewest` the shortest as good as `steps` equal ones. `teacher` takes the last `hybrid_last` steps; `decoding` are fields of
        `Decoding`; `on_batch` sees the number of a batch's first sequence, and the batch, as it is done. Sample n depends on (seed, n)
        alone, whatever the batch size. Raises `ValueError` for sizes and settings that do not fit, and for sequences longer than the
        context, which take the sampler `blocks`.
        """
        device = next(self.denoiser.parameters()).device
        if x_init is None:
            x_init = self.begin([""], num_samples, seed=seed)
        if x_init.shape[0] != num_samples:
            raise ValueError(f"x_init: expected {num_samples} rows, got shape {tuple(x_init.shape)}")
        if teacher is not None and fingerprint(teacher.tokenizer) != fingerprint(self.tokenizer):
            raise ValueError("teacher: its tokenizer is not that of the student")
        chosen = Decoding(**decoding)
        start = x_init[: min(batch_size, _GRID_TRAJECTORIES), : self.length].to(device)
        grid_rng = KeyedRng(seed, _GRID_KEYS + torch.arange(len(start), device=device))
        found = sample_keyed(
            self.denoiser,
            self.process,
            (num_samples, x_init.shape[1]),
            grid_for(self.denoiser, self.process, start, grid, steps, grid_rng, decoding=chosen),
            seed=seed,
            batch_size=batch_size,
            sampler=fit_context(resolved(sampler, self), length=x_init.shape[1], context=self.length),
            decoding=chosen,
            x_init=x_init,
            teacher=None if teacher is None else teacher.denoiser,
            device=device,
            on_step=on_step,
            on_scored=on_scored,
            on_batch=on_batch,
        )
        return found.x, found.nfe


def load_run(run: Path | FinishedRun) -> TextRun:
    """A finished run, or chain of rounds, from its folder. Raises `ValueError` where the folder lacks a part, naming it."""
    finished = run if isinstance(run, FinishedRun) else FinishedRun.read(run)
    trained, settings = finished.folder / EVALUATOR, finished.settings
    models = {name: TextModel.from_pretrained(path) for name, path in finished.models.items()}
    kept = read_safetensors(finished.folder / VALIDATION)
    return TextRun(
        settings=to_dict(settings),
        folder=finished.folder,
        models=models,
        paths=dict(finished.models),
        validation=kept["validation"].long(),
        parts=_parts(settings, kept, next(iter(models.values())).tokenizer),
        training=kept["training"].long() if "training" in kept else None,
        evaluator=str(trained) if trained.is_dir() else settings.evaluator.path,
        how={name: sampling(settings, name, models) for name in models},
        cache=settings.run.cache,
    )


def _parts(settings: Any, kept: "Mapping[str, Tensor]", tokenizer: "PreTrainedTokenizerFast") -> Tensor | None:
    """Of the validation set of a run on records with prompts."""
    if GIVEN not in kept:
        return None
    rows = (kept[name].long().numpy() for name in ("validation", GIVEN))
    return torch.from_numpy(settings.data.filling.parts_of(*rows, token_id(tokenizer.eos_token_id)))


def fitted(weights: Weights, tokenizer: "PreTrainedTokenizerFast", source: object) -> Weights:
    """The checkpoint at `source`, its vocabulary that of the tokenizer: rows that only pad it are left out, or of a decoder no states.

    Raises `ValueError` where it was trained with another tokenizer or another mask. Published checkpoints carry no fingerprint: for them
    only the number of entries, MASK included, is compared.
    """
    known, mask_id = weights.extra.get(TOKENIZER_KEY), weights.sizes.get("mask_id")
    if mask_id is not None and tokenizer.mask_token_id != mask_id:
        raise ValueError(f"data.mask_id must be {mask_id}, the mask of {source}, got {tokenizer.mask_token_id}")
    weights = weights if known is not None else weights.trimmed(len(tokenizer))
    num_states = weights.sizes["num_states"]
    if num_states != len(tokenizer):
        raise ValueError(
            f"{source}: its network has {num_states} states, the tokenizer {len(tokenizer)} (MASK included); choose the tokenizer it was "
            "trained with by data.tokenizer"
        )
    if known is not None and known != fingerprint(tokenizer):
        raise ValueError(
            f"{source}: trained with another tokenizer: fingerprint {known}, the one in use has {fingerprint(tokenizer)}; choose it by "
            f"data.tokenizer, for instance data.tokenizer={source}"
        )
    return replace(weights, model=of_text(weights.model, tokenizer))


def of_text(model: Any, tokenizer: "PreTrainedTokenizerFast") -> Any:
    """The settings of a network of text; of uniform noise the tokenizer's mask, a state as any other to it, is never in a text."""
    if getattr(model, "process", "masked") == "masked":
        return model
    return replace(model, impossible=tokenizer.mask_token_id)

"""A model of text as a pipeline of diffusers (the extra `[diffusers]`): saved, loaded and called as its pipelines are.

    from di4c_lm.domains.text.pipeline import TextPipeline

    TextPipeline.of(di4c_lm.load("outputs/<run>")).save_pretrained("pipeline")
    TextPipeline.from_pretrained("pipeline")("Once upon", num_inference_steps=4).texts

There is no scheduler among its parts: those of diffusers step through Gaussian noise, and a step here samples tokens.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin, DiffusionPipeline, ModelMixin  # pyright: ignore[reportPrivateImportUsage]
from diffusers.utils import BaseOutput  # pyright: ignore[reportPrivateImportUsage]
from torch import Tensor

from di4c_lm.checkpoints import own
from di4c_lm.domains.text.model import TextModel


class PipelineDenoiser(ModelMixin, ConfigMixin):
    """A network or mixture as a part of a pipeline; its folder is one of our own format."""

    config_name = "config.json"

    def __init__(self, denoiser: Any, length: int) -> None:
        super().__init__()
        self.denoiser, self.length = denoiser, length

    def save_pretrained(self, save_directory: str | os.PathLike[str], **_: Any) -> None:
        """Write `model.safetensors` and `config.json`, whole."""
        own.save(Path(save_directory), self.denoiser, length=self.length, extra={})

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **_: Any) -> "PipelineDenoiser":
        """What `save_pretrained` wrote, in eval mode. Raises `ValueError` for what it did not write."""
        weights = own.read(Path(pretrained_model_name_or_path))
        denoiser = weights.build(pretrained_model_name_or_path, keep_dtype=True)
        return cls(denoiser.eval(), weights.sizes["length"])

    def forward(self, x_t: Tensor, t: Tensor, lam: Any = None) -> Any:
        """The denoiser's prediction."""
        return self.denoiser(x_t, t, lam)


@dataclass
class TextOutput(BaseOutput):
    """What a pipeline wrote, and the network calls that a text took."""

    texts: list[str]
    nfe: float


class TextPipeline(DiffusionPipeline):
    """A masked-diffusion model of text; see the module."""

    denoiser: Any
    tokenizer: Any

    def __init__(self, denoiser: PipelineDenoiser, tokenizer: Any) -> None:
        super().__init__()
        self.register_modules(denoiser=denoiser, tokenizer=tokenizer)

    @classmethod
    def of(cls, model: TextModel) -> "TextPipeline":
        """Of a model, whose network it shares."""
        return cls(PipelineDenoiser(model.denoiser, model.length), model.tokenizer)

    @property
    def model(self) -> TextModel:
        """What is sampled from."""
        return TextModel(denoiser=self.denoiser.denoiser, tokenizer=self.tokenizer, length=self.denoiser.length)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] = "",
        num_inference_steps: int = 8,
        *,
        num_texts_per_prompt: int = 1,
        generator: torch.Generator | None = None,
        length: int | None = None,
        **how: Any,
    ) -> TextOutput:
        """Texts, one prompt's after another's.

        Args:
            prompt: how the texts begin: one, or several.
            num_inference_steps: network calls, or what the sampler makes of them.
            num_texts_per_prompt: texts of each prompt.
            generator: what the seed is taken from; None: the global one.
            length: tokens; None: the model's context.
            how: see `TextModel.sample_tokens`.

        Raises:
            ValueError: as `TextModel.sample`.
        """
        seed = int(torch.randint(2**31, (), generator=generator))
        model, prompts = self.model, [prompt] if isinstance(prompt, str) else list(prompt)
        x_init = model.begin(prompts, num_texts_per_prompt, length=length, seed=seed)
        tokens_ND, nfe = model.sample_tokens(len(x_init), num_inference_steps, seed=seed, x_init=x_init, **how)
        return TextOutput(texts=self.tokenizer.batch_decode(tokens_ND), nfe=nfe)

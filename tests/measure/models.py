"""Text models small enough to enumerate: 4 words, 3 positions."""

import functools
import itertools
from typing import Any

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from di4c_lm.domains.text.model import TextModel
from di4c_lm.mixtures.adaln import AdaLNSettings
from di4c_lm.mixtures.base import NoMixture
from di4c_lm.mixtures.class_chain import ClassChainSettings
from di4c_lm.mixtures.codes import CodesSettings
from di4c_lm.mixtures.sequential import SequentialSettings
from di4c_lm.networks.dit import DIT, DitConfig
from tests.measure.tiny import words

MODEL = DitConfig(hidden_size=8, num_blocks=1, num_heads=1, cond_dim=4)
CODES = 3


@functools.cache
def tokenizer() -> Any:
    return words("aa", "ab")


def text_model(
    *, codes: int = 0, length: int = 3, seed: int = 0, scale: float = 0.8, window: int | str | None = None
) -> TextModel:
    """A random network, of the mixture of `codes` components unless 0; `window`: of strings of them, of classes, or sequential."""
    if window == "sequential":
        mixture: Any = SequentialSettings(freeze_backbone=False)
    elif window == "classes":
        mixture = ClassChainSettings(codebook_size=codes, freeze_backbone=False)
    elif window is None:
        mixture = AdaLNSettings(distribution="codebook", codebook_size=codes) if codes else NoMixture()
    else:
        mixture = CodesSettings(codebook_size=codes, window=int(window))
    denoiser = mixture.fresh(DIT, MODEL, {"num_states": 5})
    rng = torch.Generator().manual_seed(seed)
    for name, parameter in denoiser.named_parameters():
        sharper = 3 if window == "classes" and name.startswith("latent") else 1
        torch.nn.init.normal_(parameter, std=sharper * scale, generator=rng)
    return TextModel(denoiser=denoiser.eval(), tokenizer=tokenizer(), length=length)


def every_text(length: int = 3) -> Int64[Tensor, "N D"]:
    return torch.tensor(list(itertools.product(range(4), repeat=length)))


@torch.no_grad()
def component_log_p(model: TextModel, length: int = 3) -> Float64[Tensor, "L D S"]:
    """log p(x_0^d | all MASK; λ_j) for every component (1 where there is no λ)."""
    x_t = torch.full((1, length), model.mask_id)
    rng = torch.Generator().manual_seed(0)
    lam = model.denoiser.training_latents(1, model.denoiser.num_components(10**6), rng, torch.device("cpu"))
    prediction = model.denoiser(x_t, torch.ones(1), lam)
    num_lambdas = prediction.features.shape[1]
    positions = torch.arange(length).repeat(num_lambdas)
    return (
        prediction.output_head.logits(prediction.features[0].flatten(0, 1), positions)
        .double()
        .log_softmax(1)
        .view(num_lambdas, length, -1)
    )


def log_mixture(log_p_LDS: Float64[Tensor, "L D S"], x_ND: Int64[Tensor, "N D"]) -> Float64[Tensor, " N"]:
    places = torch.arange(x_ND.shape[1])
    return log_p_LDS[:, places, x_ND].sum(2).logsumexp(0) - torch.tensor(float(len(log_p_LDS))).log()

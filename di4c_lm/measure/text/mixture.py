"""What a student's λ carries: correlations between positions, in nats, and samples with λ sampled anew, held, or averaged out."""

from collections.abc import Sequence
from typing import Any, final

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from di4c_lm.measure.flow import Row, columns
from di4c_lm.measure.statistics.bootstrap import Resampled, mean
from di4c_lm.measure.text.evaluator import Evaluator
from di4c_lm.measure.text.gen_ppl import DATA, GenPplConfig, measure
from di4c_lm.measure.text.samples import Reader, Sampler, TextModel, TextRun, sampler_of
from di4c_lm.processes.categorical import sample_categorical
from di4c_lm.processes.denoiser import At, OutputHead, Positions, Prediction, rows_at_once, sample_along
from di4c_lm.processes.rng import KeyedRng, uniform
from di4c_lm.samplers.grids import uniform_grid
from di4c_lm.samplers.trajectory import sample_keyed

_CORRELATION_TIMES = (1.0, 0.75, 0.5, 0.25)


def latents(model: TextModel, num_batch: int, lambdas: int, rng: Any, device: torch.device) -> Any:
    """As many λ of each sequence as stand for the mixture: all of a finite λ, else `lambdas` samples; None for a model without λ."""
    return model.denoiser.training_latents(num_batch, model.denoiser.num_components(lambdas), rng, device)


def predict(
    model: TextModel,
    x_t: Int64[Tensor, "B D"],
    t: Float[Tensor, " B"],
    rng: KeyedRng,
    *,
    lambdas: int,
    segments: Int64[Tensor, "B D"] | None = None,
) -> Any:
    """The prediction of x_0 under `latents`, which can be read, averaged and made independent; `segments` as of `Stages`."""
    return model.denoiser(x_t, t.float(), latents(model, len(x_t), lambdas, rng, x_t.device), segments)


@torch.no_grad()
def total_correlation(
    model: TextModel, x_ND: Int64[Tensor, "N D"], *, t: float, lambdas: int, seed: int, batch_size: int = 32
) -> tuple[Float64[Tensor, " N"], Float64[Tensor, " N"]]:
    """At x_t of each sequence: what the mixture captures in its own samples, and what that is worth on the text, both in nats.

    First: log mean_λ Π_d p(x̂^d | x_t; λ) - Σ_d log mean_λ p(x̂^d | x_t; λ) for one x̂ sampled from the mixture at all masked positions. Its
    mean is the total correlation, KL(mixture || product of its marginals). Second: the same of the text x_0, the gain in
    its log-likelihood over the product of marginals; below 0 where the correlations are not those of text. Both are exact where a codebook
    is enumerated; otherwise λ is averaged over samples apart from the one that made x̂, which biases the first towards 0.
    Raises `ValueError` for a model without λ.
    """
    if not model.denoiser.has_latents:
        raise ValueError("the model has no λ: it is a product, whose total correlation is 0")
    device = next(model.denoiser.parameters()).device
    own, text = [], []
    for number_B in torch.arange(len(x_ND)).split(batch_size):
        rng, x_BD = KeyedRng(seed, number_B.to(device)), x_ND[number_B].to(device)
        t_B = torch.full((len(x_BD),), t, dtype=torch.float64, device=device)
        masked_BD = uniform(rng, tuple(x_BD.shape), device) < t
        x_t = torch.where(masked_BD, model.mask_id, x_BD)
        positions, own_BD = Positions.where(masked_BD), x_t.clone()
        one = model.denoiser.sample_latents(len(x_BD), 1, rng, device)
        u_BD = uniform(rng, tuple(x_BD.shape), device)

        def choose(at: At, logits_NS: Tensor, u_BD: Tensor = u_BD, own_BD: Tensor = own_BD) -> Tensor:
            own_BD[at] = state_N = sample_categorical(logits_NS.softmax(1), u_BD[at])
            return state_N

        prediction = model.denoiser(x_t, t_B.float(), one)
        sample_along(prediction.walk(masked_BD, rows_at_once(prediction.output_head, 0)), choose)
        targets_M2 = torch.stack([positions.gather(own_BD), positions.gather(x_BD)], 1)
        reading = predict(model, x_t, t_B, rng, lambdas=lambdas).read(positions, targets_M2)
        own.append((reading.joint - reading.product)[:, 0].cpu())
        text.append((reading.joint - reading.product)[:, 1].cpu())
    return torch.cat(own), torch.cat(text)


@final
class Averaged:
    """A mixture as a product of its marginals, for samplers: every position of every call is sampled under a λ of its own choice.

    That choice is among all of `latents`, so that a position's distribution is the mean over λ and positions are independent, but for the
    chance, one in `lambdas`, that two of them share a sample of a continuous λ.
    """

    def __init__(self, model: TextModel, *, lambdas: int, seed: int) -> None:
        self._model, self._lambdas = model, lambdas
        self._rng = torch.Generator().manual_seed(seed)
        self.num_states, self.mask_id = model.denoiser.num_states, model.denoiser.mask_id

    def sample_latents(self, num_batch: int, num_lambdas: int, rng: Any, device: torch.device) -> Any:
        """All of them, whatever `num_lambdas` asks for."""
        return latents(self._model, num_batch, self._lambdas, rng, device)

    def output_head(self) -> OutputHead:
        """That of the mixture."""
        return self._model.denoiser.output_head()

    def __call__(
        self, x_t: Int64[Tensor, "B D"], t: Float[Tensor, " B"], lam: Any = None, cond: Any = None
    ) -> Prediction:
        """Features (B, 1, D, H), each position's under the λ that it chose."""
        return self._model.denoiser(x_t, t, lam).independent(self._rng)


def latent_modes(model: TextModel, *, lambdas: int, batch_size: int) -> dict[str, Sampler]:
    """Samplers on uniform steps with λ sampled anew in each call, held over the trajectory, and averaged out of each call (`Averaged`)."""

    def averaged(num_samples: int, steps: int, seed: int) -> tuple[Tensor, float]:
        denoiser: Any = Averaged(model, lambdas=lambdas, seed=seed)
        device = next(model.denoiser.parameters()).device
        shape, how = (num_samples, model.length), {"seed": seed, "batch_size": batch_size, "device": device}
        found = sample_keyed(denoiser, model.process, shape, uniform_grid(steps), **how)
        return found.x, found.nfe * model.denoiser.num_calls(lambdas)

    resampled, frozen = (sampler_of(model, batch_size, hold_latents=hold) for hold in (False, True))
    return {"λ resampled": resampled, "λ frozen": frozen, "λ averaged": averaged}


def mixture_part(run: TextRun, settings: Any, evaluators: Sequence[Evaluator], *_: Any) -> dict[str, list[Row]]:
    """Of each model with λ: correlations captured at several times, and samples with λ resampled, frozen, averaged."""
    found: dict[str, list[Row]] = {"correlation": [], "latent_modes": [], "comparisons": []}
    x_ND, shared = (
        run.some_validation(settings.likelihood_sequences, settings.seeds[0]),
        ("num_samples", "batch_size", "bootstrap"),
    )
    shared = (*shared, "evaluator_batch_size", "eos", "retokenize", "overflow")
    config = GenPplConfig(
        steps=(settings.mixture_steps,), seed=settings.seeds[0], **{key: getattr(settings, key) for key in shared}
    )
    for name, model in run.models.items():
        if not model.denoiser.has_latents:
            continue
        for t in _CORRELATION_TIMES:
            own_N, text_N = total_correlation(model, x_ND, t=t, lambdas=settings.lambdas, seed=settings.seeds[0])
            values = {"captured": Resampled(mean, (own_N.numpy(),)), "gain_on_text": Resampled(mean, (text_N.numpy(),))}
            row = {"model": name, "t": t, "sequences": len(x_ND)}
            found["correlation"].append(row | columns(values, resamples=settings.bootstrap, seed=settings.seeds[0]))
        modes = latent_modes(model, lambdas=settings.lambdas, batch_size=settings.batch_size)
        reader = Reader(tokenizer=model.tokenizer, evaluators=evaluators[:1], settings=config, cache=run.cache)
        measured = measure({f"{name}, {mode}": sampler for mode, sampler in modes.items()}, run.validation, reader)
        found["latent_modes"] += [row for row in measured.rows if row["model"] != DATA]
        found["comparisons"] += measured.comparisons
    return found

"""How well text is explained: bounds on the likelihood of validation sequences, and last words predicted.

Two different objects are bounded. `marginal_bound` is MDLM's continuous-time bound with λ averaged out position by position: the model
it belongs to reveals one token at a time, each under a fresh λ, so that nothing of a mixture's correlations enters. `step_bound` is
the bound of the sampler of n uniform steps itself: tokens revealed in one step are scored jointly, with λ averaged over their product.
"""

import json
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from di4c_lm.losses.reading import Reading
from di4c_lm.measure.flow import Row, columns, difference
from di4c_lm.measure.statistics.bootstrap import Resampled, exp_mean, mean
from di4c_lm.measure.text.mixture import predict
from di4c_lm.measure.text.samples import TextModel, TextRun
from di4c_lm.processes.categorical import kl_divergence
from di4c_lm.processes.denoiser import Positions
from di4c_lm.processes.masked import NEVER
from di4c_lm.processes.rng import KeyedRng, Rng, uniform
from di4c_lm.samplers.left_to_right import span


@torch.no_grad()
def marginal_bound(
    model: TextModel, x_ND: Int64[Tensor, "N D"], *, draws: int, lambdas: int, seed: int, batch_size: int = 64
) -> Float64[Tensor, " N"]:
    """Nats: the mean over `draws` times t, stratified on (0, 1], of (1/t) Σ_masked -log mean_λ p(x^d | x_t; λ) (Sahoo et al. 2024, Eq. 10).

    Without λ it is MDLM's bound. With λ it is the bound of the model that reveals one token at a time. Of a λ that is not enumerated, the
    mean over finitely many samples makes the estimate too large, never too small, on average (Jensen).
    """
    device = next(model.denoiser.parameters()).device
    found = []
    for number_B in torch.arange(len(x_ND)).split(batch_size):
        rng, x_BD = KeyedRng(seed, number_B.to(device)), x_ND[number_B].to(device)
        total_B = torch.zeros(len(x_BD), dtype=torch.float64, device=device)
        for part in range(draws):
            t_B = 1 - (part + uniform(rng, (len(x_BD),), device)) / draws
            x_t = model.process.corrupt(x_BD, t_B, rng)
            positions = Positions.where(x_t == model.mask_id)
            total_B -= _read(model, x_t, t_B, positions, x_BD, rng, lambdas).product[:, 0] / t_B
        found.append((total_B / draws).cpu())
    return torch.cat(found)


def sampled_step(
    process: Any,
    x_BD: Int64[Tensor, "B D"],
    rng: Rng,
    *,
    steps: int,
    draw: int,
    draws: int,
    learned: Bool[Tensor, "B D"] | None = None,
    left_to_right: bool = False,
) -> tuple[Int64[Tensor, "B D"], Float64[Tensor, " B"], Bool[Tensor, "B D"]]:
    """x_t and t of one of `steps` uniform steps of a sampling that ends in `x_BD`, and which positions the step reveals.

    The sampler is the ancestral one, or that from left to right: when a position is revealed does not depend on its token. Of each
    sequence the step is one of part `draw` of `draws` equal parts. Where it is said what is `learned`, all else stands as it is.
    """
    device, shape = x_BD.device, tuple(x_BD.shape)
    step_B = ((draw + uniform(rng, (len(x_BD),), device)) / draws * steps).floor()
    t_B, s_B = (step_B + 1) / steps, step_B / steps
    may_be_BD = torch.arange(shape[1], device=device) >= process.given if learned is None else learned
    if left_to_right:
        every_BD, one = may_be_BD.expand(shape), torch.ones_like(t_B)
        masked_BD = span(process.schedule, every_BD, one, t_B, torch.zeros_like(t_B))
        return torch.where(masked_BD, process.mask_id, x_BD), t_B, span(process.schedule, every_BD, one, t_B, s_B)
    at_t_B = process.schedule.mask_prob(t_B)
    still_B = at_t_B / process.schedule.mask_prob(torch.ones_like(t_B))  # the sampler starts from MASK alone
    x_t = torch.where((uniform(rng, shape, device) < still_B[:, None]) & may_be_BD, process.mask_id, x_BD)
    return x_t, t_B, process.revealed(x_t, t_B[:, None], s_B[:, None], uniform(rng, shape, device))


@torch.no_grad()
def step_bound(
    model: TextModel,
    x_ND: Int64[Tensor, "N D"],
    *,
    steps: int,
    draws: int,
    lambdas: int,
    seed: int,
    batch_size: int = 64,
    parts_ND: Int64[Tensor, "N D"] | None = None,
) -> Float64[Tensor, " N"]:
    """Nats: an upper bound on -log p(x) of the ancestral sampler of `steps` uniform steps; with parts, as of `Batch`, given what is given.

    Σ_k E[-log mean_λ Π_{d revealed in step k} p(x^d | x_t; λ)], x_t masked as the sampler's own trajectory is: when a position is revealed
    does not depend on its token, so what is left of the bound is the tokens' own term, and at 1 step it is the likelihood itself.
    `draws` steps a sequence, stratified. Of a λ not enumerated, too large on average, as in `marginal_bound`. Never below the entropy.
    """
    device = next(model.denoiser.parameters()).device
    found = []
    for number_B in torch.arange(len(x_ND)).split(batch_size):
        rng, x_BD = KeyedRng(seed, number_B.to(device)), x_ND[number_B].to(device)
        total_B = torch.zeros(len(x_BD), dtype=torch.float64, device=device)
        parts_BD = None if parts_ND is None else parts_ND[number_B].to(device)
        learned_BD = None if parts_BD is None else (parts_BD > 0) & (parts_BD % 2 == 0)
        segments_BD = parts_BD // 2 if parts_BD is not None and not bool(parts_BD.all()) else None
        for part in range(draws):
            how: dict[str, Any] = {"steps": steps, "draw": part, "draws": draws, "learned": learned_BD}
            x_t, t_B, revealed_BD = sampled_step(model.process, x_BD, rng, **how)
            positions = Positions.where(revealed_BD)
            found_BT = _read(model, x_t, t_B, positions, x_BD, rng, lambdas, segments_BD).joint
            total_B -= found_BT[:, 0] * steps
        found.append((total_B / draws).cpu())
    return torch.cat(found)


@torch.no_grad()
def joint_gain(
    model: TextModel,
    teacher: TextModel,
    x_ND: Int64[Tensor, "N D"],
    *,
    t: float,
    lambdas: int,
    seed: int,
    batch_size: int = 64,
) -> tuple[Float64[Tensor, " N"], Float64[Tensor, " N"]]:
    """Nats of each sequence at its masked positions, given x_t: what the model gains on the product of the teacher's marginals, and that.

    First: log mean_λ Π_d p(x^d | x_t; λ) - Σ_d log p_teacher(x^d | x_t); second: the sum over d. x_t depends on (seed, number of the
    sequence, t) alone. Of a λ that is not enumerated the gain is too small on average, never too large (Jensen).
    """
    gains, products = [], []
    for x_BD, x_t, t_B, positions, rng in _masked(model, x_ND, t, seed=seed, batch_size=batch_size):
        product_B = _read(teacher, x_t, t_B, positions, x_BD, rng, lambdas).product[:, 0]
        gains.append((_read(model, x_t, t_B, positions, x_BD, rng, lambdas).joint[:, 0] - product_B).cpu())
        products.append(product_B.cpu())
    return torch.cat(gains), torch.cat(products)


@torch.no_grad()
def marginal_distance(
    model: TextModel,
    teacher: TextModel,
    x_ND: Int64[Tensor, "N D"],
    *,
    t: float,
    lambdas: int,
    seed: int,
    batch_size: int = 64,
) -> tuple[Float64[Tensor, " N"], Float64[Tensor, " N"]]:
    """How far the marginals given x_t are from the teacher's: Σ_d KL(teacher^d ‖ m^d) in nats, and the worst position's total variation.

    Both a sequence, of its masked positions; x_t is that of `joint_gain`. Of a λ that is not enumerated too large, on average.
    """
    divergences, worst = [], []
    for x_BD, x_t, t_B, positions, rng in _masked(model, x_ND, t, seed=seed, batch_size=batch_size):
        p_MS, m_MS = (predict(of, x_t, t_B, rng, lambdas=lambdas).marginals(positions) for of in (teacher, model))
        divergences.append(positions.per_example(kl_divergence(p_MS, m_MS.log().clamp(min=NEVER))[:, None])[:, 0].cpu())
        off_BD = torch.zeros(x_BD.shape, dtype=torch.float64, device=x_BD.device)
        off_BD[positions.example, positions.position] = (p_MS - m_MS).abs().sum(1).double() / 2
        worst.append(off_BD.amax(1).cpu())
    return torch.cat(divergences), torch.cat(worst)


def _masked(
    model: TextModel, x_ND: Int64[Tensor, "N D"], t: float, *, seed: int, batch_size: int
) -> Iterator[tuple[Tensor, Tensor, Tensor, Positions, KeyedRng]]:
    """Batches of x_0, x_t and t with the masked positions, and the generator that goes on; x_t depends on (seed, number, t) alone."""
    device = next(model.denoiser.parameters()).device
    for number_B in torch.arange(len(x_ND)).split(batch_size):
        rng, x_BD = KeyedRng(seed, number_B.to(device)), x_ND[number_B].to(device)
        t_B = torch.full((len(x_BD),), t, dtype=torch.float64, device=device)
        masked_BD = uniform(rng, tuple(x_BD.shape), device) < t
        yield x_BD, torch.where(masked_BD, model.mask_id, x_BD), t_B, Positions.where(masked_BD), rng


def _read(
    model: TextModel,
    x_t: Tensor,
    t_B: Tensor,
    positions: Positions,
    x_BD: Tensor,
    rng: KeyedRng,
    lambdas: int,
    segments: Tensor | None = None,
) -> Reading:
    """log mean_λ Π_d p(x^d | x_t; λ) and Σ_d log mean_λ p(x^d | x_t; λ) over the positions of each sequence."""
    said = predict(model, x_t, t_B, rng, lambdas=lambdas, segments=segments)
    return said.read(positions, positions.gather(x_BD)[:, None])


def read_texts(path: Path) -> list[str]:
    """Documents of a .txt file, one a line, or of a .jsonl file, each line with "text". Raises `ValueError` that names what is wrong."""
    if not path.is_file() or path.suffix not in (".txt", ".jsonl"):
        raise ValueError(f'{path}: expected a .txt file, a document a line, or a .jsonl file with "text" in each line')
    lines = [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    try:
        texts = lines if path.suffix == ".txt" else [json.loads(line)["text"] for line in lines]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{path}: a line is no JSON object with "text": {error}') from error
    if not texts:
        raise ValueError(f"{path}: it holds no text")
    return texts


def zero_shot_sets(folder: Path, model: TextModel, *, limit: int) -> dict[str, Int64[Tensor, "N D"]]:
    """The files of a folder as sequences of the model's length, documents parted by EOS: at most `limit` of each file, the rest left out.

    Raises `ValueError` for an absent or empty folder, and names a file too short for two sequences.
    """
    files = sorted(path for path in folder.glob("*") if path.suffix in (".txt", ".jsonl"))
    if not files:
        raise ValueError(f"zero_shot={str(folder)!r}: expected a folder of .txt or .jsonl files")
    found = {}
    for path in files:
        ids: list[int] = []
        for text in read_texts(path):
            ids += [*_encode(model.tokenizer, text), model.tokenizer.eos_token_id]
            if len(ids) >= limit * model.length:
                break
        num = min(limit, len(ids) // model.length)
        if num < 2:
            raise ValueError(f"{path}: {len(ids)} tokens are too few for two sequences of {model.length}")
        found[path.stem] = torch.tensor(ids[: num * model.length]).view(num, model.length)
    return found


def _encode(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@torch.no_grad()
def last_words(
    model: TextModel, texts: Sequence[str], *, lambdas: int, seed: int, batch_size: int = 64
) -> Float64[Tensor, " N"]:
    """1 where the last word of a text is predicted, token by token, else 0 (after LAMBADA; Paperno et al. 2016).

    The context stands first, EOS before it where there is room, cut at its start where there is none; then the word and all that might
    follow it are MASK. The word's number of tokens is given. Its tokens are filled in from left to right, each the likeliest under the
    mean over λ; one wrong token makes the word wrong. Raises `ValueError` for a text of fewer than 2 words and for a word of the model's
    length or more.
    """
    split = [_split_last_word(model, number, text) for number, text in enumerate(texts)]
    device = next(model.denoiser.parameters()).device
    found = torch.ones(len(split), dtype=torch.float64)
    for number_B in torch.arange(len(split)).split(batch_size):
        rng = KeyedRng(seed, number_B.to(device))
        x_BD = torch.full((len(number_B), model.length), model.mask_id)
        for row, number in enumerate(number_B.tolist()):
            context = split[number][0]
            x_BD[row, : len(context)] = torch.tensor(context)
        x_BD = x_BD.to(device)
        for place in range(max(len(split[number][1]) for number in number_B.tolist())):
            rows = [row for row, number in enumerate(number_B.tolist()) if place < len(split[number][1])]
            row_R = torch.tensor(rows, device=device)
            position_R = torch.tensor([len(split[int(number_B[row])][0]) + place for row in rows], device=device)
            t_B = (x_BD == model.mask_id).double().mean(1)
            positions = Positions(example=row_R, position=position_R, num_examples=len(x_BD))
            guess_R = predict(model, x_BD, t_B, rng, lambdas=lambdas).marginals(positions).argmax(1)
            x_BD[row_R, position_R] = guess_R
            for row, guess in zip(rows, guess_R.tolist(), strict=True):
                number = int(number_B[row])
                found[number] *= guess == split[number][1][place]
    return found


def _split_last_word(model: TextModel, number: int, text: str) -> tuple[list[int], list[int]]:
    whole = " ".join(text.split())
    before, space, word = whole.rpartition(" ")
    if not space:
        raise ValueError(f"text {number} has fewer than 2 words: {text[:60]!r}")
    context, target = _encode(model.tokenizer, before), _encode(model.tokenizer, space + word)
    room = model.length - len(target)
    if room < 1:
        raise ValueError(f"text {number}: its last word has {len(target)} tokens, the model's sequences {model.length}")
    start = [model.tokenizer.eos_token_id, *context]
    return start if len(start) <= room else context[-room:], target


def likelihood_part(run: TextRun, settings: Any, *_: Any) -> dict[str, list[Row]]:
    """Perplexity bounds of validation and zero-shot text, each of the one-token-a-step limit and of each step count, and last words."""
    limit, seed = settings.likelihood_sequences, settings.seeds[0]
    sets = {"held-out": run.some_validation(limit, seed)}
    if settings.zero_shot is not None:
        sets |= zero_shot_sets(Path(settings.zero_shot), run.student, limit=limit)
    texts = read_texts(Path(settings.lambada))[:limit] if settings.lambada else _texts(run.student, sets["held-out"])
    resampling = {"resamples": settings.bootstrap, "seed": seed}
    rows, words = [], []
    quantities: dict[str, dict[tuple[str, str], Resampled]] = {name: {} for name in run.models}
    common: dict[str, Any] = {"lambdas": settings.lambdas, "seed": seed, "batch_size": settings.batch_size}
    for name, model in run.models.items():
        for where, x_ND in sets.items():
            bounds = {"bound_ppl": marginal_bound(model, x_ND, draws=settings.likelihood_draws, **common)}
            for steps in settings.steps if where == "held-out" else ():
                bounds[f"bound_ppl_{steps}_steps"] = step_bound(
                    model, x_ND, steps=steps, draws=settings.likelihood_draws, **common
                )
            of_set = {key: Resampled(exp_mean, (nats_N.numpy() / x_ND.shape[1],)) for key, nats_N in bounds.items()}
            quantities[name] |= {(key, where): value for key, value in of_set.items()}
            rows.append({"model": name, "set": where, "sequences": len(x_ND), **columns(of_set, **resampling)})
        hits = Resampled(mean, (last_words(model, texts, **common).numpy(),))
        quantities[name]["accuracy", "last words"] = hits
        row = {"model": name, "set": "last words", "sequences": len(texts)}
        words.append(row | columns({"accuracy": hits}, **resampling))
    comparisons = [
        difference(
            f"{key}, {where}",
            {"of": a, "minus": b, "steps": 0},
            value,
            quantities[b][key, where],
            **resampling,
        )
        for b, a in combinations(run.models, 2)
        for (key, where), value in quantities[a].items()
    ]
    return {"likelihood": rows, "last_words": words, "comparisons": comparisons}


def _texts(student: TextModel, x_ND: Int64[Tensor, "N D"]) -> list[str]:
    """Validation sequences as texts that end with a whole word: what follows the last space is left out."""
    decoded = [str(student.tokenizer.decode(ids, skip_special_tokens=True)) for ids in x_ND.tolist()]
    texts = [" ".join(text.split()[:-1]) for text in decoded]
    return [text for text in texts if len(text.split()) >= 2]

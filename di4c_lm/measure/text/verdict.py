"""Which numbers may be believed: flags on a row of the suite, and ranks of the rows without one.

Perplexity and entropy alone can be had without a model, so a row is ranked only if nothing about it says that its numbers were come by
in another way than by writing like the text.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from di4c_lm.measure.flow import Row, with_end

LOWER_IS_CLOSER = ("gradient_moment", "energy", "energy_hand")
_ORDER_SHARE, _CORPUS_SHARE, _DUPLICATE_EXCESS, _TAIL_P = 0.1, 0.9, 0.05, 1e-3


@final
@dataclass(frozen=True, kw_only=True)
class Band:
    """Where real documents lie: the central 95 % of their entropies, and the 97.5 % quantile of their repetition."""

    entropy_low: float
    entropy_high: float
    repetition_high: float

    @classmethod
    def of(cls, entropy_M: Float[ndarray, " M"], repetition_M: Float[ndarray, " M"]) -> "Band":
        """From the reference documents."""
        low, high = np.quantile(entropy_M, [0.025, 0.975])
        return cls(
            entropy_low=float(low),
            entropy_high=float(high),
            repetition_high=float(np.quantile(repetition_M, 0.975)) + 0.01,
        )


def flags(row: Row, real: Row, band: Band) -> list[str]:
    """Why a row is not ranked; none for one that may be.

    `real` is the row of the part of the validation set that is not the reference. Only what the row holds is looked at:

    - entropy: its mean over samples lies outside the band;
    - repetition: its mean Rep-4 lies above the band;
    - near-duplicates: their share exceeds that of the real text by 0.05;
    - corpus entropy: below 0.9 of the real text's, the samples being as many;
    - perplexity: below the real text's under some evaluator, intervals apart;
    - order: the evaluator loses less than a tenth as much by shuffling the sample's tokens as by shuffling real text;
    - noise: the sampler's noise is of single precision, or it samples rare tokens less often than it should (p < 0.001 in the probe);
    - real text must not differ from the reference: p < 0.001 in a permutation test flags it.
    """
    found = []
    if "entropy" in row and not band.entropy_low <= row["entropy"] <= band.entropy_high:
        found.append(f"entropy outside {band.entropy_low:.3f} to {band.entropy_high:.3f}")
    if "rep_4" in row and row["rep_4"] > band.repetition_high:
        found.append(f"repetition above {band.repetition_high:.3f}")
    if "near_duplicates" in row and row["near_duplicates"] > real["near_duplicates"] + _DUPLICATE_EXCESS:
        found.append("near-duplicates")
    if "corpus_entropy" in row and row["corpus_entropy"] < _CORPUS_SHARE * real["corpus_entropy"]:
        found.append(f"corpus entropy below {_CORPUS_SHARE * real['corpus_entropy']:.3f}")
    scored = [key for key in row if key.partition("@")[0] == "gen_ppl"]
    if any(row[with_end(key, "high")] < real[with_end(key, "low")] for key in scored):
        found.append("perplexity below that of the text itself")
    if "order_gain" in row and row["order_gain"] < _ORDER_SHARE * real["order_gain"]:
        found.append("order of tokens means nothing")
    if row["noise"] != "float64":
        found.append(f"noise is {row['noise']}")
    if row.get("tail_p", 1.0) < _TAIL_P:
        found.append("rare tokens sampled too seldom")
    if row["kind"] == "data" and any(row.get(f"{name}_p", 1.0) < _TAIL_P for name in LOWER_IS_CLOSER):
        found.append("halves of the validation set differ")
    return found


def ranked(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with `rank`: 1 for the one nearest to the validation set, None for flagged rows and where no distance was measured.

    Nearness is the mean of the ranks by gradient moment, by both energy distances, and by MAUVE.
    """
    every = list(rows)
    fit = [row for row in every if not row["flags"] and "gradient_moment" in row]
    columns = [[row[name] for row in fit] for name in LOWER_IS_CLOSER] + [[-row["mauve"] for row in fit]]
    mean_rank = np.mean([[sum(a < b for a in column) for b in column] for column in columns], axis=0) if fit else []
    order = {id(fit[i]): place + 1 for place, i in enumerate(np.argsort(mean_rank, kind="stable"))}
    return [row | {"rank": order.get(id(row))} for row in every]


def uncaught(rows: Iterable[Row]) -> list[str]:
    """Canaries that were neither flagged nor ranked behind every model: reasons not to believe the report."""
    every = list(rows)
    last = max((row["rank"] for row in every if row["kind"] == "model" and row["rank"]), default=0)
    return [
        f"{row['model']}, {row['steps']} steps" if row["steps"] else str(row["model"])
        for row in every
        if row["kind"] == "canary" and not row["flags"] and (row["rank"] is None or row["rank"] < last)
    ]

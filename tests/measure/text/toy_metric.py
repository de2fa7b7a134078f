"""A metric of text in one file: the share of even tokens."""

from di4c_lm.measure.flow import Metric
from di4c_lm.measure.statistics.bootstrap import Resampled, mean
from di4c_lm.measure.text.samples import TextSamples


def _measure(samples: TextSamples, bench: object) -> dict[str, Resampled]:
    return {"even": Resampled(mean, ((samples.own % 2 == 0).double().mean(1).cpu().numpy(),), samples.seeds)}


EVEN = Metric(measure=_measure, part="diversity", headings={"even": "even tokens"}, compared=("even",))

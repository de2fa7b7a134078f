"""Dream, Dream-Coder and DiffuCoder: Qwen2's names, and logits that stand one position before their token."""

from di4c_lm.checkpoints import llama
from di4c_lm.checkpoints.decoders import Format, with_model, without_model

FORMAT = Format(
    name="dream",
    architectures=("DreamModel",),
    keys=llama.KEYS,
    fixed=llama.FIXED,
    defaults={"rope_theta": 10_000.0, "norm_eps": 1e-6},
    to_ours=without_model,
    to_theirs=with_model,
    written_as=lambda _: ("DreamModel", "Dream"),
    shift=True,
)
recognises, read, write = FORMAT.recognises, FORMAT.read, FORMAT.write

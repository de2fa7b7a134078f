"""A student that begins as its teacher, and the check that both read the same tokens."""

import torch

from di4c_lm.checkpoints.inherit import inherit
from di4c_lm.checkpoints.weights import Loaded
from di4c_lm.mixtures.latent import is_latent
from di4c_lm.mixtures.settings import LatentConfig
from di4c_lm.networks.dit import DIT, DitConfig

TOKENIZER_KEY = "tokenizer"  # in `extra`: the fingerprint of the tokenizer that the network was trained with


def student_from_teacher(
    teacher: DIT, latent: LatentConfig | None, generator: torch.Generator, *, model: DitConfig | None = None
) -> DIT:
    """A new network with all of `teacher`'s weights and a λ path drawn from `generator`; the global generator is left alone.

    A teacher that is a mixture itself (a second round) hands on its λ path too. `model` may differ from the teacher's in what has no
    shape, such as dropout. On the teacher's device, in its dtype, in training mode, every parameter trainable.

    Raises `ValueError` where shapes differ, all of them listed, or where the teacher's λ is of another kind than `latent`.
    """
    return inherit(
        teacher,
        lambda: DIT(model or teacher.config, num_states=teacher.num_states, latent=latent),
        latent,
        generator,
        is_latent,
    )


def check_tokenizer(loaded: Loaded, *, fingerprint: str, num_states: int, source: object) -> None:
    """Raise `ValueError` where the checkpoint at `source` was trained with another tokenizer.

    `fingerprint` and `num_states` (entries, MASK included) are the tokenizer's in use. Published checkpoints carry no fingerprint:
    for them only the number of states is compared.
    """
    if loaded.network.num_states != num_states:
        raise ValueError(
            f"{source}: its network has {loaded.network.num_states} states, the tokenizer {num_states} (MASK included); choose "
            "the tokenizer it was trained with by data.tokenizer"
        )
    trained_with = loaded.extra.get(TOKENIZER_KEY)
    if trained_with is not None and trained_with != fingerprint:
        raise ValueError(
            f"{source}: trained with another tokenizer: fingerprint {trained_with}, the one in use has {fingerprint}; choose it "
            f"by data.tokenizer, for instance data.tokenizer={source}"
        )

"""`vqgan`: encoder, codebook and decoder, the weights loaded by their published names."""

from collections.abc import Iterator
from typing import Any

import torch

from di4c_lm.networks.vqgan import VqGan, VqganConfig
from tests.parity.golden import Computed, Golden, Tolerance

INPUTS = ("image", "code")
_EXACT = Tolerance()
_VALUES = Tolerance(atol=1e-5, rtol=1e-5)


def load(golden: Golden) -> VqGan:
    """Our network with the file's weights, strictly."""
    said: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in golden.meta["ddconfig"].items()
    }
    network = VqGan(
        VqganConfig(
            n_embed=golden.meta["n_embed"],
            embed_dim=golden.meta["embed_dim"],
            beta=golden.meta["beta"],
            **{key: value for key, value in said.items() if key != "double_z"},
        )
    )
    network.load_state_dict(golden.weights())
    return network.eval()


@torch.no_grad()
def compute(golden: Golden) -> Iterator[Computed]:
    """Every array that is not an input."""
    network, image, code_BPP = load(golden), golden.tensor("image"), golden.tensor("code")
    encoded = network.encoder(image)
    prequant = network.quant_conv(encoded)
    quantised = network.quantize(prequant)
    code_quant = network.quantize.lookup(code_BPP.flatten(1), code_BPP.shape[1])
    yield Computed("encoder_out", encoded, _VALUES)
    yield Computed("prequant", prequant, _VALUES)
    yield Computed("quant", quantised.vectors, _VALUES)
    yield Computed("emb_loss", quantised.loss, _VALUES)
    yield Computed("indices", quantised.codes.flatten(), _EXACT)
    yield Computed("code_quant", code_quant, _EXACT)
    yield Computed("decoded_code", network.decode_vectors(code_quant), _VALUES)
    yield Computed("recon", network(image)[0], _VALUES)

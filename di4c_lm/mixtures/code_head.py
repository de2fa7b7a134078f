"""λ behind all attention: a code for each window of positions modulates the last MLP and the last norm, and a chain ties the codes.

What is said of a position depends on x_t and on the code of its own window alone, so L runs of the last MLP say all there is to say about
L^W strings of codes.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from di4c_lm.mixtures.code_chain import CodeChain
from di4c_lm.mixtures.latent import string_uniforms
from di4c_lm.mixtures.settings import LatentConfig
from di4c_lm.processes.denoiser import widest


class MixtureHead(nn.Module):
    """Codes, how they modulate, and the law that their chain has given x_t.

    log p(z_w = j | z_{w-1} = i; x_t) = log softmax_j(step_ij + weight_j(h_w)), with h_w the mean
    features of window w before the last MLP. `lambda.tie=none` leaves out the first term, `lambda.weights=uniform` the second. A window of
    0 positions spans the sequence.
    """

    def __init__(self, latent: LatentConfig, width: int) -> None:
        super().__init__()
        self.latent = latent
        size = latent.codebook_size
        self.codebook = nn.Embedding(size, width)
        self.modulation = nn.Linear(width, 4 * width, bias=False)
        nn.init.normal_(self.codebook.weight)
        nn.init.normal_(self.modulation.weight, std=latent.init_scale / math.sqrt(width))
        if latent.tie == "chain":
            self.step = nn.Parameter(torch.empty(size, size))
            nn.init.normal_(self.step)
        if latent.weights == "context":
            self.weight = nn.Linear(width, size)
            nn.init.zeros_(self.weight.weight)
            nn.init.zeros_(self.weight.bias)

    def forward(self, h: Float[Tensor, "B D H"], lam: Tensor) -> tuple[Float[Tensor, "C N P fourH"], CodeChain | None]:
        """Shifts and scales: of all codes with their chain, C = P = 1 and N = L, where `lam` holds code numbers (B, L, 1).

        Where `lam` holds uniforms (B, N, 1): of N strings of codes drawn by them, C = B and P = D, without the chain.
        """
        chain = self.chain(h)
        if not lam.is_floating_point():
            return self.modulation(self.codebook(lam[:1, :, 0]))[:, :, None], chain
        num_windows = chain.log_step.shape[1]
        u_BNW = string_uniforms(lam, num_windows)
        code_BND = chain.sample(u_BNW)[:, :, chain.window_of(torch.arange(h.shape[1], device=h.device))]
        return F.embedding(code_BND, self.modulation(self.codebook.weight)), None

    def chain(self, h: Float[Tensor, "B D H"]) -> CodeChain:
        """The law of the codes given x_t."""
        num_positions = h.shape[1]
        window = self.latent.window or num_positions
        short = -num_positions % window
        h_BWH = F.pad(h, (0, 0, 0, short)).unflatten(1, (-1, window)).sum(2)
        count_W1 = torch.full((h_BWH.shape[1], 1), window, dtype=h.dtype, device=h.device)
        count_W1[-1] -= short
        score_BW1L = self._weights(h_BWH / count_W1)[:, :, None]
        first_W11 = torch.arange(score_BW1L.shape[1], device=h.device)[:, None, None] == 0
        score_BWLL = score_BW1L + torch.where(first_W11, 0.0, self._ties().to(h.dtype))
        return CodeChain(score_BWLL.to(widest(h.dtype)).log_softmax(3), window)

    def _weights(self, h_BWH: Float[Tensor, "B W H"]) -> Float[Tensor, "B W L"]:
        if self.latent.weights == "uniform":
            return h_BWH.new_zeros(*h_BWH.shape[:2], self.latent.codebook_size)
        return self.weight(F.layer_norm(h_BWH, h_BWH.shape[-1:]))

    def _ties(self) -> Float[Tensor, "L L"]:
        if self.latent.tie == "none":
            return self.codebook.weight.new_zeros(self.latent.codebook_size, self.latent.codebook_size)
        return self.step

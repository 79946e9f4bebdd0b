"""What Mamba-3 may be replaced by in the product's model: an LSTM and a causal Transformer, of as many parameters."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from detector.model.inference import Backend
from detector.model.model import Block, DetectorModel, ModelConfig, RMSNorm
from kernels.packing import Packing

HEADS = 4


class Lstm(nn.Module):
    """An LSTM (Hochreiter and Schmidhuber 1997) with a projection back to the width.

    Args:
        d_model: width of input and output.
        parameters: about how many it may have.
    """

    def __init__(self, d_model: int, parameters: int) -> None:
        super().__init__()
        # 4 h (d + h + 2) + h d
        b = 5 * d_model + 8
        hidden = round((math.sqrt(b * b + 16 * parameters) - b) / 8)
        self.lstm = nn.LSTM(d_model, hidden)
        self.out_proj = nn.Linear(hidden, d_model, bias=False)

    def forward(self, u: Tensor, packing: Packing, backend: Backend) -> Tensor:
        """(T, d_model) packed sequences to the same shape, every token with those before it."""
        del backend
        padded, there = _padded(u, packing)
        mixed: Tensor = self.out_proj(self.lstm(padded.transpose(0, 1))[0].transpose(0, 1)[there])
        return mixed


class Transformer(nn.Module):
    """Causal self-attention and a layer of neurons (Vaswani et al. 2017); places enter as in ALiBi (Press et al. 2022).

    Args:
        d_model: width of input and output.
        parameters: about how many it may have.
    """

    def __init__(self, d_model: int, parameters: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.attended = nn.Linear(d_model, d_model, bias=False)
        self.norm = RMSNorm(d_model)
        neurons = round((parameters - 4 * d_model * d_model - d_model) / (2 * d_model))
        self.in_proj = nn.Linear(d_model, neurons, bias=False)
        self.out_proj = nn.Linear(neurons, d_model, bias=False)

    def forward(self, u: Tensor, packing: Packing, backend: Backend) -> Tensor:
        """(T, d_model) packed sequences to the same shape, every token with those before it."""
        del backend
        padded, there = _padded(u, packing)
        n, longest, d_model = padded.shape
        split = self.qkv(padded).view(n, longest, 3, HEADS, d_model // HEADS)
        q, k, v = split.permute(2, 0, 3, 1, 4)
        place = torch.arange(longest, device=u.device)
        slopes = 2.0 ** (-8 / HEADS * torch.arange(1, HEADS + 1, device=u.device))
        back = (place[:, None] - place).to(u.dtype)
        bias = (-slopes[:, None, None] * back).masked_fill(back < 0, -math.inf)
        heads = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        attended = self.attended(heads.transpose(1, 2).reshape(n, longest, d_model)[there])
        neurons = functional.gelu(self.in_proj(self.norm(u + attended)))
        mixed: Tensor = attended + self.out_proj(neurons)
        return mixed


class _Mixed(DetectorModel):
    """With another mixer in each block."""

    mixer: type[Lstm | Transformer]

    def __init__(self, config: ModelConfig, template_features: Tensor) -> None:
        super().__init__(config, template_features)
        for block in self.blocks:
            assert isinstance(block, Block)
            parameters = sum(each.numel() for each in block.mixer.parameters())
            block.mixer = self.mixer(config.d_model, parameters)  # type: ignore[assignment]
            with torch.no_grad():
                block.mixer.out_proj.weight.div_(math.sqrt(config.n_layers))


class WithLstm(_Mixed):
    """An LSTM in the place of each Mamba-3 layer."""

    mixer = Lstm


class WithTransformer(_Mixed):
    """Attention and neurons in the place of each Mamba-3 layer."""

    mixer = Transformer


def _padded(u: Tensor, packing: Packing) -> tuple[Tensor, Tensor]:
    """Packed sequences side by side, (n, longest, d_model), and where there are tokens, (n, longest)."""
    sizes = packing.cu_seqlens.diff().long().to(u.device)
    there = torch.arange(int(sizes.max()), device=u.device) < sizes[:, None]
    padded = u.new_zeros(*there.shape, u.shape[1])
    padded[there] = u
    return padded, there

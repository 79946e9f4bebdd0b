"""The detector's network: embedded tokens, Mamba-3 blocks, and one head each for the next token and for the class.

What the model says at a position is, on the CPU, the same bits whichever sequences share the batch, wherever in it a
sequence lies, whether it goes on after the position, and whatever the number of threads. `kernels.reference` says what
this takes in the operation; here it takes two things more. The last rows and columns of a matrix product run other
code than the rest where they do not fill a block, and threads move these ends; so rows are filled up to multiples of
`_BLOCK` with a sequence of their own, and columns with zeros. And softplus, whose bits depend on the place in the
tensor, is put together from functions whose bits do not (`kernels.mixer`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from detector.text.vocabulary import BOS, UNK
from detector.text.word_hashes import TEXT_BUCKETS, TEXT_FEATURES, unpack
from kernels import Backend, Mamba3State, mamba3_mimo, mamba3_mixer
from kernels.arguments import Operands
from kernels.carried import Pieces, carried_on
from kernels.mamba3 import triton_size_obstacle
from kernels.mixer import activated, rms_norm
from kernels.packing import Packing

_BLOCK = 64
_DT_MIN, _DT_MAX = 1e-3, 1e-1


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of a model.

    Attributes:
        vocabulary_size: tokens, BOS, EOS and UNK included.
        d_model: width of the residual stream.
        n_layers: Mamba-3 blocks.
        d_state: columns of a head's state.
        headdim: rows of a head's state.
        mimo_rank: inputs and outputs a head's state takes and gives per token.
        rope_fraction: share of d_state that is rotated, 0.5 or 1.
        expand: width of the heads together, in units of d_model.

    Raises:
        ValueError: a size is not positive, or they do not fit each other.
    """

    vocabulary_size: int
    d_model: int
    n_layers: int
    d_state: int
    headdim: int
    mimo_rank: int
    rope_fraction: float = 0.5
    expand: int = 2

    def __post_init__(self) -> None:
        for name in ("d_model", "n_layers", "d_state", "headdim", "mimo_rank", "expand"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.vocabulary_size <= UNK:
            raise ValueError(f"vocabulary_size is {self.vocabulary_size}; BOS, EOS and UNK alone are {UNK + 1}")
        if self.rope_fraction not in (0.5, 1.0):
            raise ValueError(f"rope_fraction is {self.rope_fraction}; it must be 0.5 or 1.0")
        if self.expand * self.d_model % self.headdim:
            raise ValueError(f"headdim {self.headdim} does not divide expand * d_model = {self.expand * self.d_model}")
        if self.d_state % 4:
            raise ValueError(
                f"d_state is {self.d_state}; it must be a multiple of 4, whose halves are rotated in pairs"
            )

    @property
    def triton_obstacle(self) -> str | None:
        """What of these sizes Triton's kernels do not take, None if nothing."""
        return triton_size_obstacle(self.mimo_rank, self.d_state, self.headdim)

    @classmethod
    def preset(cls, size: Literal["tiny", "small", "reference"], vocabulary_size: int) -> "ModelConfig":
        """The sizes the project trains: "tiny" and "small" for CPUs, "reference" for a GPU."""
        match size:
            case "tiny":
                return cls(vocabulary_size, d_model=64, n_layers=2, d_state=16, headdim=64, mimo_rank=2)
            case "small":
                return cls(vocabulary_size, d_model=128, n_layers=4, d_state=32, headdim=64, mimo_rank=2)
            case "reference":
                return cls(vocabulary_size, d_model=256, n_layers=9, d_state=64, headdim=64, mimo_rank=4)


class RMSNorm(nn.Module):
    """Scales vectors of `size` numbers to a root mean square of 1, times a learned weight each."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        """(..., size) to the same shape and dtype."""
        return rms_norm(x, self.weight)


class Mamba3Layer(nn.Module):
    """Mamba-3 with MIMO heads; parameters are named, laid out and initialised as in state-spaces/mamba's `Mamba3`.

    Args:
        d_model: width of input and output.
        d_state: columns N of a head's state, a multiple of 4.
        headdim: rows P of a head's state; divides expand * d_model.
        mimo_rank: R.
        rope_fraction: share of d_state that is rotated, 0.5 or 1.
        expand: width of the heads together, in units of d_model.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int,
        headdim: int,
        mimo_rank: int,
        rope_fraction: float = 0.5,
        expand: int = 2,
    ) -> None:
        super().__init__()
        inner = expand * d_model
        H, R, N, P = inner // headdim, mimo_rank, d_state, headdim
        self.n_angles = int(N * rope_fraction) // 2
        self.in_proj = nn.Linear(d_model, 2 * inner + 2 * R * N + 3 * H + self.n_angles, bias=False)
        self.out_proj = nn.Linear(inner, d_model, bias=False)
        # The inverse of softplus, of steps spread evenly in the logarithm.
        dt = torch.exp(torch.empty(H).uniform_(math.log(_DT_MIN), math.log(_DT_MAX)))
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))
        self.B_norm = RMSNorm(N)
        self.C_norm = RMSNorm(N)
        self.B_bias = nn.Parameter(torch.ones(H, R, N))
        self.C_bias = nn.Parameter(torch.ones(H, R, N))
        self.mimo_x = nn.Parameter(torch.full((H, R, P), 1 / R))
        self.mimo_z = nn.Parameter(torch.ones(H, R, P))
        self.mimo_o = nn.Parameter(torch.full((H, R, P), 1 / R))
        self.D = nn.Parameter(torch.ones(H))

    def forward(self, u: Tensor, cu_seqlens: Tensor | Packing, backend: Backend = "auto") -> Tensor:
        """Mixes each sequence's tokens, every one with those before it.

        Args:
            u: (T, d_model) packed sequences.
            cu_seqlens: (n + 1,) int32, where each starts and, last, T; or the `Packing` made of it.
            backend: of `kernels.mamba3_mixer`.

        Returns:
            (T, d_model).
        """
        # The columns it is filled up with stay: to cut them off would cost the gradient a copy.
        projected = functional.linear(u, _whole_blocks(self.in_proj.weight))
        # Under autocast the projection is in bfloat16; the operation decides for itself what it sums in float32.
        with torch.autocast(u.device.type, enabled=False):
            y = mamba3_mixer(
                projected,
                n_angles=self.n_angles,
                dt_bias=self.dt_bias,
                B_norm=self.B_norm.weight,
                C_norm=self.C_norm.weight,
                C_bias=self.C_bias,
                B_bias=self.B_bias,
                mimo_x=self.mimo_x,
                mimo_z=self.mimo_z,
                mimo_o=self.mimo_o,
                D=self.D,
                cu_seqlens=cu_seqlens,
                backend=backend,
            )
        return _product(y, self.out_proj.weight)

    def carry_on(self, u: Tensor, pieces: Pieces, states: Mamba3State) -> tuple[Tensor, Mamba3State | None]:
        """Mix the tokens of sequences that go on, in plain PyTorch and without gradients.

        Args:
            u: (T or more, d_model), a row a token in the order of `pieces`; rows beyond are filling.
            pieces: where the sequences lie.
            states: the layer's, of all slots.

        Returns:
            As many rows as u has, and the states as of `kernels.carried.carried_on`.
        """
        projected = functional.linear(u, _whole_blocks(self.in_proj.weight))
        T = pieces.rest.n_tokens + (0 if pieces.whole is None else pieces.whole.n_tokens)
        weights = self.C_bias, self.B_bias, self.mimo_x, self.mimo_z, self.mimo_o, self.D
        operands = Operands.projected(projected[:T], self.n_angles, weights)
        operands = activated(operands, self.dt_bias, self.B_norm.weight, self.C_norm.weight)
        y, after = carried_on(operands, pieces, states, _reference)
        filled = functional.pad(y.flatten(1), (0, 0, 0, u.shape[0] - T))
        return _product(filled, self.out_proj.weight), after


def _reference(
    operands: Operands, packing: Packing, initial: Mamba3State, final: bool
) -> tuple[Tensor, Mamba3State | None]:
    return mamba3_mimo(*operands, packing, initial, final, backend="reference")


class Block(nn.Module):
    """A Mamba-3 layer on the normalised residual stream, added to it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm = RMSNorm(config.d_model)
        self.mixer = Mamba3Layer(
            config.d_model,
            config.d_state,
            config.headdim,
            config.mimo_rank,
            config.rope_fraction,
            config.expand,
        )

    def forward(self, u: Tensor, cu_seqlens: Tensor | Packing, backend: Backend) -> Tensor:
        """(T, d_model) to (T, d_model)."""
        mixed: Tensor = self.mixer(self.norm(u), cu_seqlens, backend)
        return u + mixed

    def carry_on(self, u: Tensor, pieces: Pieces, states: Mamba3State) -> tuple[Tensor, Mamba3State | None]:
        """As of the layer."""
        mixed, after = self.mixer.carry_on(self.norm(u), pieces, states)
        return u + mixed, after


class DetectorModel(nn.Module):
    """Packed sessions to next-token logits and class logits.

    Args:
        config: its sizes.
        template_features: int64 (vocabulary_size, TEXT_FEATURES), text buckets of each token, 0 where it has fewer.

    Raises:
        ValueError: template_features is not int64 of that shape, or has a bucket out of range.
    """

    template_features: Tensor

    def __init__(self, config: ModelConfig, template_features: Tensor) -> None:
        super().__init__()
        expected = (config.vocabulary_size, TEXT_FEATURES)
        if template_features.shape != expected or template_features.dtype != torch.int64:
            raise ValueError(
                f"template_features is {template_features.dtype} {tuple(template_features.shape)}; it must be "
                f"torch.int64 {expected}"
            )
        if int(template_features.min()) < 0 or int(template_features.max()) >= TEXT_BUCKETS:
            raise ValueError(
                f"template_features has buckets from {int(template_features.min())} to "
                f"{int(template_features.max())}; they must be from 0 to {TEXT_BUCKETS - 1}"
            )
        self.config = config
        self.register_buffer("template_features", template_features.clone())
        self.token_embedding = nn.Embedding(config.vocabulary_size, config.d_model)
        self.text_embedding = nn.Embedding(TEXT_BUCKETS, config.d_model, padding_idx=0)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.d_model)
        self.next_token_head = nn.Linear(config.d_model, config.vocabulary_size, bias=False)
        self.class_head = nn.Linear(config.d_model, 1)
        self._initialise()

    def _initialise(self) -> None:
        """Embeddings of about unit length; blocks that together add about as much; heads that know nothing yet."""
        with torch.no_grad():
            for table in (self.token_embedding, self.text_embedding):
                table.weight.normal_(std=self.config.d_model**-0.5)
            self.text_embedding.weight[0] = 0
            for block in self.blocks:
                assert isinstance(block, Block)
                block.mixer.out_proj.weight.div_(math.sqrt(self.config.n_layers))
            self.next_token_head.weight.normal_(std=0.02)
            self.class_head.weight.zero_()
            self.class_head.bias.zero_()

    def forward(
        self,
        tokens: Tensor,
        cu_seqlens: Tensor,
        *,
        unknown_mask: Tensor | None = None,
        unknown_lines: bool = True,
        backend: Backend = "auto",
    ) -> tuple[Tensor, Tensor]:
        """What comes after each token, and which class its sequence so far belongs to.

        Args:
            tokens: int64 (T,); a negative one is an unknown line that carries its text (`detector.text.word_hashes`).
            cu_seqlens: int32 (n + 1,), where each sequence starts and, last, T; sequences may be empty. On the CPU or
                where the tokens are, from where it takes a transfer.
            unknown_mask: bool (T,); these tokens are embedded as unknown lines with their template's text.
            unknown_lines: whether a token may be negative; to see which are, a GPU is waited for.
            backend: of `kernels.mamba3_mixer`.

        Returns:
            Next-token logits (T, vocabulary_size) and class logits (T,).
        """
        T = tokens.numel()
        filling = -T % _BLOCK
        tokens = functional.pad(tokens, (0, filling), value=BOS)
        packing = Packing.of(functional.pad(cu_seqlens, (0, 1), value=T + filling), tokens.device)
        if unknown_mask is not None:
            unknown_mask = functional.pad(unknown_mask, (0, filling), value=False)
        u = self._embed(tokens, unknown_mask, unknown_lines)
        for block in self.blocks:
            u = block(u, packing, backend)
        return self._logits(u, T)

    def carry_on(
        self, tokens: Tensor, pieces: Pieces, states: Sequence[Mamba3State]
    ) -> tuple[Tensor, Tensor, list[Mamba3State]]:
        """What comes after each token of sequences that go on; without gradients, on the CPU.

        Args:
            tokens: int64 (T,), in the order of `pieces`.
            pieces: where the sequences lie.
            states: of each block, of all slots.

        Returns:
            As `forward`, the same bits as of the whole sequences, and of each block the states after the whole
            segments, if there are any, for `kernels.carried.put_back`.
        """
        T = tokens.numel()
        u = self._embed(functional.pad(tokens, (0, -T % _BLOCK), value=BOS), None, unknown_lines=True)
        after = []
        for block, own in zip(self.blocks, states, strict=True):
            u, left = cast(Block, block).carry_on(u, pieces, own)
            if left is not None:
                after.append(left)
        return *self._logits(u, T), after

    def _logits(self, u: Tensor, T: int) -> tuple[Tensor, Tensor]:
        """Of the first T rows."""
        # One product for both heads: a single column has code of its own, too.
        logits = _product(self.norm(u), torch.cat((self.next_token_head.weight, self.class_head.weight)))[:T]
        return logits[:, :-1], logits[:, -1] + self.class_head.bias

    def token_vectors(self) -> Tensor:
        """(vocabulary_size, d_model), what each token that is no unknown line enters the first block as."""
        return self.token_embedding.weight + self._text_vectors(self.template_features)

    def _embed(self, tokens: Tensor, unknown_mask: Tensor | None, unknown_lines: bool) -> Tensor:
        """(T,) to (T, d_model): the learned vector of the token, or of UNK, plus the vector of its text."""
        is_unknown = tokens < 0
        known = tokens.masked_fill(is_unknown, UNK)
        # Not `index_select`, whose backward on a GPU adds rows up in no fixed order.
        text = functional.embedding(known, self._text_vectors(self.template_features))
        if unknown_lines and is_unknown.any():
            lines = is_unknown.nonzero().squeeze(1)
            text = text.index_copy(0, lines, self._text_vectors(torch.stack(unpack(tokens[lines]), 1)))
        learned = known if unknown_mask is None else known.masked_fill(unknown_mask, UNK)
        return functional.embedding(learned, self.token_embedding.weight) + text

    def _text_vectors(self, features: Tensor) -> Tensor:
        """(k, TEXT_FEATURES) buckets to (k, d_model), the mean vector of those that are not 0."""
        table = self.text_embedding
        total = torch.zeros((), dtype=table.weight.dtype, device=features.device)
        for column in features.unbind(1):
            total = total + table(column)
        return total / (features > 0).sum(1, keepdim=True).clamp(min=1)


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """(T, k) and (m, k) to (T, m), with the columns filled up to whole blocks while multiplying."""
    return functional.linear(x, _whole_blocks(weight))[:, : weight.shape[0]]


def _whole_blocks(weight: Tensor) -> Tensor:
    """A matrix, its rows filled up with zeros."""
    filling = -weight.shape[0] % _BLOCK
    return functional.pad(weight, (0, 0, 0, filling)) if filling else weight

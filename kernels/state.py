"""What a sequence carries from one call to the next."""

from typing import NamedTuple

from torch import Tensor


class Mamba3State(NamedTuple):
    """What a sequence needs to resume, each with a leading dimension of n sequences.

    Attributes:
        angle: (n, H, S) rotation after the last token, in radians, in [0, 2 pi).
        ssm: (n, H, P, N) state.
        k: (n, H, R, N) the last token's rotated B.
        x: (n, H, P) the last token's x.
    """

    angle: Tensor
    ssm: Tensor
    k: Tensor
    x: Tensor

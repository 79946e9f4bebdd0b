"""Numbers as the products take them: bfloat16, two at a time where one instruction does, or float32."""

import triton
import triton.language as tl

from kernels.triton import INTERPRETED


@triton.jit
def widened(x):
    """In float32."""
    if x.dtype == tl.bfloat16 and not INTERPRETED:  # one instruction a number, not two
        return tl.inline_asm_elementwise(
            "shl.b32 $0, $2, 16; and.b32 $1, $2, 0xffff0000;", "=r,=r,r", [x],
            dtype=tl.float32, is_pure=True, pack=2,
        )  # fmt: skip
    else:
        return x.to(tl.float32)


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """Of float32, in `dtype`.

    The assembly says it is impure only so that the compiler leaves it where it is: else it moves a product's operand
    into the registers of the tensor cores from its loads on, and makes every number of it from two loads of two bytes.
    """
    if dtype == tl.bfloat16 and not INTERPRETED:
        return tl.inline_asm_elementwise(
            "cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,f,f", [x], dtype=tl.bfloat16, is_pure=False, pack=2
        )
    elif dtype == tl.float16 and not INTERPRETED:
        return tl.inline_asm_elementwise(
            "cvt.rn.f16x2.f32 $0, $2, $1;", "=r,f,f", [x], dtype=tl.float16, is_pure=False, pack=2
        )
    else:
        return x.to(dtype)


@triton.jit
def rounded_product(a, b):
    """a * b of one dtype, in that dtype; bfloat16 two at a time, impure for the reason given in `rounded`."""
    if a.dtype == tl.bfloat16 and not INTERPRETED:
        return tl.inline_asm_elementwise(
            "mul.rn.bf16x2 $0, $1, $2;", "=r,r,r", [a, b], dtype=tl.bfloat16, is_pure=False, pack=2
        )
    else:
        return rounded(widened(a) * widened(b), a.dtype)


@triton.jit
def packed_sum(a, b):
    """a + b of bfloat16, two at a time."""
    return tl.inline_asm_elementwise(
        "add.rn.bf16x2 $0, $1, $2;", "=r,r,r", [a, b], dtype=tl.bfloat16, is_pure=True, pack=2
    )


@triton.jit
def tf32_parts(x):
    """float32 x in two: its first 11 bits, which the tensor cores take whole, and what is left, of which they do."""
    large = (x.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
    return large, x - large


@triton.jit
def product_of_parts(large_a, small_a, large_b, small_b):
    """a @ b of float32 in parts, nearly all its bits.

    Triton's own way to do so, tf32x3, also looks for numbers that are not finite, one by one. The sum starts anew, for
    what tensor cores add to a sum they cut off, and of a long one that is more than the parts leave out.
    """
    total = tl.dot(small_a, large_b, input_precision="tf32")
    total = tl.dot(large_a, small_b, total, input_precision="tf32")
    return tl.dot(large_a, large_b, total, input_precision="tf32")


@triton.jit
def product(a, b, total, COMPUTE: tl.constexpr):
    """total + a @ b in float32, with a and b rounded to COMPUTE; float32 as three products, nearly all its bits."""
    a, b = a.to(COMPUTE), b.to(COMPUTE)
    if INTERPRETED:  # whose product takes bfloat16 for integers
        return tl.dot(a.to(tl.float32), b.to(tl.float32), total)
    elif tl.bfloat16 == COMPUTE:
        return tl.dot(a, b, total)
    else:
        large_a, small_a = tf32_parts(a)
        large_b, small_b = tf32_parts(b)
        return total + product_of_parts(large_a, small_a, large_b, small_b)

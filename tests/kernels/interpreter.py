"""Triton kernels on machines without a GPU: call `interpret_kernels` before the first import of one."""

from __future__ import annotations

import functools
import os
from typing import Any

import torch


def interpret_kernels() -> None:
    """Have Triton 3.6 interpret kernels where there is no CUDA device, three faults mended, two delays left out."""
    if torch.cuda.is_available():
        return
    os.environ["TRITON_INTERPRET"] = "1"
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    patch_lang_tensor, convert_float = interpreter._patch_lang_tensor, interpreter._convert_float

    def with_bounds(tensor: Any, scope: Any) -> None:
        patch_lang_tensor(tensor, scope)
        # Its scalars are arrays of one number; it makes them loop bounds with int(), which NumPy 2.4 refuses.
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    def with_rounding(values: Any, source: Any, target: Any, rounding: Any) -> Any:
        # It cuts float32 to bfloat16, and where asked to round loses the carry; devices round to nearest even.
        if (source, target) == (tl.float32, tl.bfloat16):
            rounded = torch.from_numpy(np.array(values, np.float32)).bfloat16()
            return rounded.view(torch.int16).numpy().view(np.uint16)
        if (source, target) == (tl.bfloat16, tl.float32):
            return (np.asarray(values, np.uint32) << 16).view(np.float32)
        return convert_float(values, source, target, rounding)

    def in_order(builder: Any, a: Any, b: Any, d: Any, input_precision: Any, max_num_imprecise_acc: Any) -> Any:
        # It multiplies the bits of bfloat16 as integers, and NumPy's products round a row by its place among the rows.
        left, right = (convert_bfloat16(t) for t in (a, b))
        total = d.data.copy()
        for k in range(left.shape[-1]):
            total += left[..., :, k, None] * right[..., None, k, :]
        return interpreter.TensorHandle(total, d.dtype.scalar)

    def convert_bfloat16(tensor: Any) -> Any:
        is_bfloat16 = tensor.dtype.scalar == tl.bfloat16
        return with_rounding(tensor.data, tl.bfloat16, tl.float32, None) if is_bfloat16 else tensor.data

    interpreter.InterpreterBuilder.create_dot = in_order
    interpreter._patch_lang_tensor = with_bounds
    interpreter._convert_float = with_rounding
    # It patches the language anew at every call of a function; once for each will do, if the patches stay.
    interpreter._patch_lang = functools.cache(interpreter._patch_lang)
    interpreter._LangPatchScope.restore = lambda self: None
    # It computes which sums of integers overflow, and says so only when it debugs.
    interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)

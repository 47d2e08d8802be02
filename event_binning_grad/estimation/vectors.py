"""Vector instructions where numba's compiler does not find them by itself."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

_FOUR = ir.VectorType(ir.FloatType(), 4)
_LANES = ir.Constant(ir.VectorType(ir.IntType(32), 4), [0] * 4)
# Multiplications and additions may be fused.
_FUSED = ("contract",)


@intrinsic
def weigh_rows(typing_context, image, corner, cols, weights, out, at, apart):  # pyright: ignore
    """out[at + k apart + j] = sum_r weights[k][r] image[corner + r cols + j], r and j from 0 to 3.

    image, out: one-dimensional contiguous float32; corner, cols, at, apart: unsigned integers;
    weights: a tuple of tuples of four float32.
    """
    signature = types.void(image, corner, cols, weights, out, at, apart)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        image, corner, cols, weights, out, at, apart = values
        image_type, *_, weights_type, out_type, _, _ = signature.args

        def four(array: Any, kind: Any, index: Any) -> Any:
            data = context.make_array(kind)(context, builder, array).data
            return builder.bitcast(builder.gep(data, [index]), _FOUR.as_pointer())

        rows = []
        for _ in range(4):
            rows.append(builder.load(four(image, image_type, corner), align=4))
            corner = builder.add(corner, cols)
        for k in range(len(weights_type)):
            total = None
            for r, row in enumerate(rows):
                weight = builder.extract_value(weights, [k, r])
                lane = builder.insert_element(
                    ir.Constant(_FOUR, ir.Undefined), weight, ir.Constant(ir.IntType(32), 0)
                )
                term = builder.fmul(builder.shuffle_vector(lane, lane, _LANES), row, flags=_FUSED)
                total = term if total is None else builder.fadd(total, term, flags=_FUSED)
            builder.store(total, four(out, out_type, at), align=4)
            at = builder.add(at, apart)
        return context.get_dummy_value()

    return signature, generate

"""Vector instructions where numba's compiler does not find them by itself."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

_FOUR, _EIGHT = (ir.VectorType(ir.FloatType(), lanes) for lanes in (4, 8))
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

        rows = []
        for _ in range(4):
            row = _place(context, builder, image, image_type, corner, _FOUR)
            rows.append(builder.load(row, align=4))
            corner = builder.add(corner, cols)
        for k in range(len(weights_type)):
            total = None
            for r, row in enumerate(rows):
                weight = builder.extract_value(weights, [k, r])
                term = builder.fmul(_spread(builder, weight, _FOUR), row, flags=_FUSED)
                total = term if total is None else builder.fadd(total, term, flags=_FUSED)
            to = _place(context, builder, out, out_type, at, _FOUR)
            builder.store(total, to, align=4)
            at = builder.add(at, apart)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def add_eight(typing_context, sums, at, weight, values, first):  # pyright: ignore
    """sums[at : at + 8] += weight * values[first : first + 8].

    sums, values: one-dimensional contiguous float32; weight: float32; at, first: unsigned integers.
    """
    signature = types.void(sums, at, weight, values, first)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        sums, at, weight, values, first = arguments
        sums_type, _, _, values_type, _ = signature.args
        to = _place(context, builder, sums, sums_type, at, _EIGHT)
        of = _place(context, builder, values, values_type, first, _EIGHT)
        spread = _spread(builder, weight, _EIGHT)
        product = builder.fmul(spread, builder.load(of, align=4), flags=_FUSED)
        total = builder.fadd(builder.load(to, align=4), product, flags=_FUSED)
        builder.store(total, to, align=4)
        return context.get_dummy_value()

    return signature, generate


def _place(context: Any, builder: Any, array: Any, kind: Any, index: Any, vector: Any) -> Any:
    """Address of an array's numbers from an index on, as a vector."""
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), vector.as_pointer())


def _spread(builder: Any, number: Any, vector: Any) -> Any:
    """A vector of one number."""
    lane = builder.insert_element(
        ir.Constant(vector, ir.Undefined), number, ir.Constant(ir.IntType(32), 0)
    )
    lanes = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), [0] * vector.count)
    return builder.shuffle_vector(lane, lane, lanes)

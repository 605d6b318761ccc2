"""What PyTorch's own layers and functions make of a value, when the weights that they read are zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from torch import nn

from pruning.groups.reading.values import (
    NONE,
    ZERO,
    Items,
    Known,
    Shape,
    Sum,
    Value,
    add,
    as_sum,
    constant,
    free,
    is_zero,
    join,
    multiply,
    single,
    the_atom,
    viewed,
)

SAME = {
    "to", "float", "half", "double", "bfloat16", "type", "type_as", "contiguous", "clone", "detach", "dropout",
    "cuda", "cpu", "requires_grad_", "alpha_dropout", "dropout2d", "dropout3d",
}  # fmt: skip
"""Methods and functions that hand on the numbers that they are given."""

RESHAPES = {"view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as"}

KEEPS_ZERO = {
    "split", "unbind", "tensor_split", "expand", "repeat", "repeat_interleave", "expand_as", "roll", "flip",
    "tanh", "relu", "silu", "gelu", "mish", "leaky_relu", "elu", "hardswish", "sum", "mean", "stack", "pad", "neg",
    "interpolate", "avg_pool2d", "avg_pool1d", "movedim", "index_select", "gather", "abs", "square", "sqrt", "narrow",
    "select", "masked_select", "clip", "clamp", "nan_to_num", "softsign", "t", "unfold", "fold", "pixel_shuffle",
    "pixel_unshuffle", "max_pool2d", "normalize", "real", "imag", "swapaxes", "concat", "view_as_real", "glu",
    "cumsum", "max_pool1d", "zeros_like", "new_zeros", "zeros", "upsample",
}  # fmt: skip
PRODUCTS = {"matmul", "bmm", "mm", "mul", "multiply", "einsum", "outer", "dot", "__matmul__", "baddbmm_"}
WEIGHTED = {"linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "embedding"}
NORMS = {"layer_norm": 2, "rms_norm": 2, "group_norm": 2, "batch_norm": 3}
"""Where a norm's weight stands among its arguments."""

ATTENTION = {"scaled_dot_product_attention", "dispatch_attention_fn", "memory_efficient_attention"}


def layer(module: nn.Module, args: Sequence[Value]) -> Value:
    """Return the output of one of PyTorch's layers whose parameters, if it has any, are zero."""
    x = args[0] if args else free()
    own = dict(module.named_parameters(recurse=False))
    if isinstance(module, nn.MultiheadAttention):
        return Items((ZERO, free()))
    if isinstance(module, (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)):
        return x
    if "weight" in own and isinstance(module, (nn.PReLU, nn.RNNBase)):
        return ZERO if is_zero(x) else free(sure=True)
    if "weight" in own:  # a product with the weight, and at most the bias beside it
        return ZERO
    if isinstance(module, (nn.Sigmoid, nn.Softmax, nn.LogSoftmax, nn.Softplus)) or own:
        return free(sure=True)
    return ZERO if is_zero(x) else free(sure=True)


def call(name: str, args: Sequence[Value], kwargs: Mapping[str, Value]) -> Value:
    """Return what a tensor function or method makes of its arguments (the tensor itself is the first one)."""
    every = [*args, *kwargs.values()]
    x = args[0] if args else next(iter(kwargs.values()), NONE)
    if name in SAME:
        return x
    if name in ("cat", "concat", "concatenate"):
        return _cat(x, kwargs.get("dim", args[1] if len(args) > 1 else Known(0)))
    if name in ("add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_", "true_divide") and len(args) > 1:
        known = {"a": "+", "s": "-", "m": "*", "d": "/", "t": "/"}
        return arithmetic(known[name[0]], x, args[1]) if len(every) == 2 else free(sure=True)
    if name == "addcmul" and len(args) == 3:
        return arithmetic("+", x, arithmetic("*", args[1], args[2]))
    if name == "where" and len(args) == 3:
        return join(args[1], args[2])
    if name in ("size",):
        shape = Shape(x) if isinstance(x, Sum) else free(sure=True)
        return item(shape, args[1]) if len(args) > 1 and isinstance(shape, Shape) else shape
    if name in RESHAPES and isinstance(x, Sum):
        return viewed(x, "r", _sizes(args[1:]) if name in ("view", "reshape") else None)
    if name in ("permute", "transpose", "swapaxes") and isinstance(x, Sum):
        return viewed(x, _axes(name, args[1:]))
    if name in ("zeros", "zeros_like", "new_zeros"):
        return ZERO
    if name in ("split", "split_with_sizes") and len(args) > 1:
        return _split(x, args[1], kwargs.get("dim", args[2] if len(args) > 2 else Known(0)))
    if name == "chunk" and len(args) > 1:
        return _chunk(x, args[1], kwargs.get("dim", args[2] if len(args) > 2 else Known(0)))
    if name in KEEPS_ZERO:
        parts = x.items if isinstance(x, Items) else (x,)
        return ZERO if all(is_zero(part) for part in parts) else free(sure=True)
    if name in PRODUCTS:
        return ZERO if any(is_zero(value) for value in every) else free(sure=True)
    if name in WEIGHTED:
        weight = kwargs.get("weight", args[1] if len(args) > 1 else free())
        bias = kwargs.get("bias", args[2] if len(args) > 2 and name != "embedding" else NONE)
        return ZERO if is_zero(weight) and (bias == NONE or is_zero(bias)) else free(sure=True)
    if name in NORMS:
        place = NORMS[name]
        weight = kwargs.get("weight", args[place] if len(args) > place else NONE)
        bias = kwargs.get("bias", args[place + 1] if len(args) > place + 1 and name != "rms_norm" else NONE)
        return ZERO if is_zero(weight) and (bias == NONE or is_zero(bias)) else free(sure=True)
    if name in ATTENTION:
        value = kwargs.get("value", args[2] if len(args) > 2 else free())
        return ZERO if is_zero(value) else free(sure=True)
    return free(sure=True)


def arithmetic(operator: str, left: Value, right: Value) -> Value:
    """Return ``left operator right`` for numbers and tensors."""
    one, other = as_sum(left), as_sum(right)
    if one is None or other is None:
        return free(sure=True)
    if operator == "+":
        return add(one, other)
    if operator == "-":
        return add(one, other, -1.0)
    if operator == "*":
        return multiply(one, other)
    if operator == "/":
        if not one.terms:
            return ZERO
        if len(other.terms) == 1:
            ((atoms, factor),) = other.terms
            if not atoms:
                return multiply(one, constant(1.0 / factor))
        return free(sure=True)
    if operator == "@" and (not one.terms or not other.terms):
        return ZERO
    return free(sure=True)


def item(value: Value, index: Value) -> Value:
    """Return ``value[index]`` for lists, shapes and tensors; a slice is given as ``Items`` of kind `slice`."""
    if isinstance(value, Shape):
        if isinstance(index, Known) and isinstance(index.value, int):
            return single(("size", value.of, index.value))
        return free(sure=True)
    if isinstance(value, Sum):
        if not value.terms:
            return ZERO
        return _part(value, index)
    return free()


def _part(value: Sum, index: Value) -> Value:
    """Return a slice of a tensor: one of the parts of a concatenation if it is cut where these meet."""
    places = index.items if isinstance(index, Items) and index.kind is tuple else (index,)
    if all(place == NONE or _whole(place) or place == Known(...) for place in places):
        return viewed(value, "r")
    cuts = [(axis, place) for axis, place in enumerate(places) if not (place == Known(...) or _whole(place))]
    atom = the_atom(value)
    if len(cuts) != 1 or atom is None:
        return free(sure=True)
    axis, place = cuts[0]
    if any(place == Known(...) for place in places[:axis]):
        axis -= len(places)
    if not (isinstance(place, Items) and place.kind is slice) or place.items[2] != NONE:
        return free(sure=True)
    start, stop, _ = place.items
    if atom[0] == "cat" and atom[1] == axis and (chosen := _of_cat(atom, start, stop)) is not None:
        return chosen
    ends = [None if end in (NONE, Known(0)) else _key(end) for end in (start, stop)]
    if (start not in (NONE, Known(0)) and ends[0] is None) or (stop != NONE and ends[1] is None):
        return free(sure=True)
    return single(("part", atom, axis, *ends))


def _of_cat(atom: Any, start: Value, stop: Value) -> Value | None:
    """Return the parts of a concatenation between two of its seams; None for other places."""
    _, dim, parts = atom
    bounds = _bounds(parts, dim)
    first = 0 if start in (NONE, Known(0)) else bounds.get(_key(start))
    last = len(parts) if stop == NONE else bounds.get(_key(stop))
    if first is None or last is None or first >= last:
        return None
    chosen = parts[first:last]
    return chosen[0] if len(chosen) == 1 else single(("cat", dim, chosen))


def _bounds(parts: tuple[Sum, ...], dim: int) -> dict[Any, int]:
    """Return, by what a place is written as, before which part it lies: sizes from the front and from the back."""
    found: dict[Any, int] = {}
    front = back = ZERO
    for count, part in enumerate(parts, start=1):
        front = add(front, single(("size", part, dim)))
        found[_key(front)] = count
    for count, part in enumerate(reversed(parts), start=1):
        back = add(back, single(("size", part, dim)), -1.0)
        found[_key(back)] = len(parts) - count
    return found


def _key(value: Value) -> Any:
    total = as_sum(value)
    return total.terms if total is not None else None


def _whole(place: Value) -> bool:
    return isinstance(place, Items) and place.kind is slice and place.items == (NONE, NONE, NONE)


def _cat(parts: Value, dim: Value) -> Value:
    if is_zero(parts):
        return ZERO
    if not isinstance(parts, Items) or not isinstance(dim, Known):
        return free(sure=True)
    sums = [as_sum(part) for part in parts.items]
    if all(part is not None and not part.terms for part in sums):
        return ZERO
    if any(part is None for part in sums):
        return free(sure=True)
    if len(sums) == 1:
        return sums[0]  # type: ignore[return-value]
    atoms = [the_atom(part) for part in sums]  # type: ignore[arg-type]
    whole = _rejoined(atoms, dim.value)
    return whole if whole is not None else single(("cat", dim.value, tuple(sums)))


def _rejoined(parts: Sequence[Any], dim: int) -> Value | None:
    """Return what was cut into these parts, if they are all of it and in order."""
    if not all(part is not None and part[0] == "part" and part[1:3] == (parts[0][1], dim) for part in parts):
        return None
    ends = [None, *(part[4] for part in parts)]
    starts = [*(part[3] for part in parts), None]
    return single(parts[0][1]) if starts == ends else None


def _split(value: Value, sizes: Value, dim: Value) -> Value:
    """Split a tensor, a concatenation at its own seams."""
    if is_zero(value):
        count = len(sizes.items) if isinstance(sizes, Items) else None
        return Items((ZERO,) * count) if count else ZERO
    atom = the_atom(value)
    if atom is None or not isinstance(sizes, Items) or not isinstance(dim, Known):
        return free(sure=True)
    if atom[0] == "cat" and dim == Known(atom[1]):
        own = [_key(single(("size", part, atom[1]))) for part in atom[2]]
        if [_key(size) for size in sizes.items] == own:
            return Items(atom[2])
    ends: list[Any] = [None]
    place = ZERO
    for size in sizes.items[:-1]:
        length = as_sum(size)
        if length is None:
            return free(sure=True)
        place = add(place, length)
        ends.append(place.terms)
    ends.append(None)
    return Items(tuple(single(("part", atom, dim.value, a, b)) for a, b in pairwise(ends)))


def _chunk(value: Value, count: Value, dim: Value) -> Value:
    """Return so many equal parts of a tensor."""
    atom = the_atom(value)
    if is_zero(value):
        return ZERO
    if atom is None or not isinstance(count, Known) or not isinstance(dim, Known):
        return free(sure=True)
    ends = [None, *(("chunk", k, count.value) for k in range(1, count.value)), None]
    return Items(tuple(single(("part", atom, dim.value, a, b)) for a, b in pairwise(ends)))


def _sizes(places: Sequence[Value]) -> Any:
    """Return the sizes that a tensor is reshaped to, in a form that can be compared."""
    if len(places) == 1 and isinstance(places[0], Items):
        places = places[0].items
    sizes = [as_sum(place) for place in places]
    return tuple(size.terms for size in sizes) if all(size is not None for size in sizes) else None  # type: ignore[union-attr]


def _axes(name: str, places: Sequence[Value]) -> Any:
    if len(places) == 1 and isinstance(places[0], Items):
        places = places[0].items
    if not all(isinstance(place, Known) and isinstance(place.value, int) for place in places):
        return ("swap", (-1, object()))
    axes = tuple(place.value for place in places)  # type: ignore[union-attr]
    return ("permute", axes) if name == "permute" else ("swap", tuple(sorted(axes)))

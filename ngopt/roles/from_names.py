"""Roles from names and shapes alone, if the graph was inferred from these."""

import re
from collections.abc import Sequence

from ngopt.graph.groups_and_blocks import ParameterSpec, View, contiguous_strides
from ngopt.graph.inference.layers_by_name import are_in_out
from ngopt.roles.matrices import MatrixBlock

NAMES = {
    "other": r"(^|[._])(cls|class|dist\w*|mask|register)_?(tokens?|emb\w*)$"
    r"|pos(ition(al)?)?_?(emb(ed(ding)?s?)?|enc(oding)?)$"
    r"|(layer_?scale(_parameter|_?\d+)?|bias_table|slopes?|temperature)$"
    r"|(logit_scale|lambda_?\d*|(^|[._])a_logs?)$"
    r"|(^|[._])(p?relu|act(ivation)?)\d*[._]weight$",
    "embedding": r"emb(ed(ding)?s?)?(_\w+)?[._]weight$"
    r"|(^|[._])(w[tps]e|tok|tokens?|vocab|lookup|shared|relative_\w*bias)[._]weight$",
    "norm": r"(norm\w*|(^|[._])(ln|bn|rms)\w*)([._]\d+)?[._](weight|bias|scale|offset)$"
    r"|(^|[._])(gamma|beta)$",
    "bias": r"(bias(_[ih]h)?(_l\d+(_reverse)?)?|(^|[._])b\d*)$",
}
"""Roles and patterns of lower-case names; the first that matches and fits the shape."""

OUTPUT = re.compile(
    r"(^|[._])(lm_head|embed_out|unembed|aux\d+[._]fc2)[._]weight$"
    r"|^(head|fc|classifier|output|out|logits)[._]weight$"
)
"""Names of output matrices; without a match, the last matrix is the output."""

WEIGHT = re.compile(r"(weight|bias)[^.]*$")
"""Names of weights and biases in modules, as `weight_ih_l0`."""

UNNAMED = re.compile(r"parameter \d+$")
"""Names that `build_graph` and optimizers give to parameters without a name."""

FUSED = {
    3: r"(^|[._])(w?qkv(_\w+)?|to_qkv|c_attn|in_proj|query_key_value)[._]?weight$",
    2: r"(^|[._])(w?kv|to_kv|kv_proj|key_value|gate_up_proj)[._]weight$",
}
"""Number of matrices of equal size in a weight with such a name, row after row."""

GATES = re.compile(r"weight_[ih]h(_l\d+)?(_reverse)?$")
EXPERTS = re.compile(r"(^|[._])experts?([._]|$)")


class RolesFromNames:
    """Roles and matrices by the names and shapes of all parameters together."""

    def __init__(
        self, specs: Sequence[ParameterSpec], by_module: list[str], by_order: list[str]
    ):
        """by_module, by_order: roles of parameters whose names match no pattern, by the
        other parameters of the module and by the order of all.

        If a name has neither "weight" nor "bias", the order of parameters decides.
        """
        self.specs = specs
        self.index = {spec.name: i for i, spec in enumerate(specs)}
        weights = [i for i, spec in enumerate(specs) if len(spec.shape) > 1]
        shapes = []
        for i in weights:
            bias = self._bias(i)
            shape = None if bias is None else bias.shape
            shapes.append((specs[i].name, specs[i].shape, shape))
        are_transposed = zip(weights, are_in_out(shapes), strict=True)
        self._in_out = {i for i, is_in_out in are_transposed if is_in_out}
        self.roles: list[str] = []
        for i, spec in enumerate(specs):
            is_usual = WEIGHT.search(spec.name)
            self.roles.append(self._role(i, by_module[i] if is_usual else by_order[i]))
        self._find_outputs()

    def blocks(self, number: int) -> tuple[MatrixBlock, ...]:
        """The matrices of a parameter; () if it has none."""
        role = self.roles[number]
        spec = self.specs[number]
        if role not in ("embedding", "output", "matrix"):
            return ()
        shape = list(spec.shape)
        strides = list(contiguous_strides(spec.shape))
        if role == "embedding" or number in self._in_out:
            shape[:2] = shape[1::-1]
            strides[:2] = strides[1::-1]
        count = self._count(number, shape)
        if EXPERTS.search(spec.name) and _dims(spec) == 3:
            return (MatrixBlock(View(number, tuple(shape), tuple(strides))),)
        rows = shape[0] // count
        shape[:1] = count, rows
        strides[:1] = strides[0] * rows, strides[0]
        view = View(number, tuple(shape), tuple(strides))
        # the matrices read the same neurons, but names do not show which
        return (MatrixBlock(view, columns=((),) * count),)

    def _role(self, number: int, guess: str) -> str:
        spec = self.specs[number]
        name = spec.name.lower()
        for role, pattern in NAMES.items():
            if re.search(pattern, name) and self._fits_shape(number, role, guess):
                return role
        if _dims(spec) < 2:
            is_norm = guess == "norm" and spec.numel > 1
            # a bias has a dimension, even of a single neuron
            is_known = is_norm or (guess == "bias" and bool(spec.shape))
            return guess if is_known else "other"
        # a factor or term of every place; a weight only if it is a factor of maps whose
        # channels are last
        sides = spec.shape[: _dims(spec)]
        is_broadcast = _long_sides(sides) < 2 or (len(sides) == 3 and sides[0] == 1)
        is_weight = name.endswith("weight") and tuple(spec.shape[:3]) != (1, 1, 1)
        if is_broadcast and not is_weight:
            return "other"
        stacks = (*FUSED.values(), GATES)
        is_stacked = any(re.search(pattern, name) for pattern in stacks)
        return "embedding" if guess == "embedding" and not is_stacked else "matrix"

    def _fits_shape(self, number: int, role: str, guess: str) -> bool:
        """Whether a role by name fits the shape of a parameter and its module."""
        spec = self.specs[number]
        if role == "embedding":
            return _dims(spec) == 2 and self._bias(number) is None
        if role == "other":
            return True
        if role == "bias" and guess == "norm":  # in a module of two vectors
            return False
        return _dims(spec) == 1 or (role == "norm" and _long_sides(spec.shape) <= 1)

    def _find_outputs(self) -> None:
        """Output matrices by name; else the last matrix, unless its rows are the
        neurons of the first table."""
        matrices = [i for i, role in enumerate(self.roles) if role == "matrix"]
        for i in matrices:
            if OUTPUT.search(self.specs[i].name.lower()):
                self.roles[i] = "output"
        if not matrices or "output" in self.roles:
            return
        last = matrices[-1]
        rows = self.specs[last].shape[int(last in self._in_out)]
        tables = [i for i, role in enumerate(self.roles) if role == "embedding"]
        if not tables or rows != self.specs[tables[0]].shape[1]:
            self.roles[last] = "output"

    def _bias(self, number: int) -> ParameterSpec | None:
        """The bias of a weight's module."""
        name = self.specs[number].name
        if UNNAMED.match(name):
            following = self.specs[number + 1 : number + 2]
            return following[0] if following and _dims(following[0]) == 1 else None
        if not name.endswith("weight"):
            return None
        place = self.index.get(name.removesuffix("weight") + "bias")
        return None if place is None else self.specs[place]

    def _count(self, number: int, shape: Sequence[int]) -> int:
        """Number of matrices in a weight, one after the other in its rows."""
        name = self.specs[number].name
        if GATES.search(name):
            if re.sub("weight_[ih]h", "weight_hr", name) in self.index:
                return 4  # an LSTM with a projection
            # 4 for an LSTM, 3 for a GRU: rows / columns of its W_hh
            recurrent = self.index[re.sub("weight_[ih]h", "weight_hh", name)]
            rows, columns = self.specs[recurrent].shape[:2]
            return next((n for n in (3, 4) if rows == n * columns), 1)
        for count, pattern in FUSED.items():
            if re.search(pattern, name.lower()) and shape[0] % count == 0:
                return count
        return 1


def _dims(spec: ParameterSpec) -> int:
    """Dimensions of a parameter, without that of real pairs."""
    return len(spec.shape) - spec.is_complex


def _long_sides(shape: Sequence[int]) -> int:
    return sum(n > 1 for n in shape)

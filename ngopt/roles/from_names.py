"""Roles from names and shapes alone, where a graph was inferred from these."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ngopt.graph.groups_and_blocks import ParameterSpec, View, contiguous_strides
from ngopt.roles.matrices import MatrixBlock

NAMES = (
    ("other", r"(^|[._])(cls|class|dist\w*|mask|register)_?(tokens?|emb\w*)$"),
    ("other", r"pos(ition(al)?)?_?(emb(ed(ding)?s?)?|enc(oding)?)$"),
    (
        "other",
        r"(layer_?scale(_parameter|_?\d+)?|bias_table|slopes?|temperature|logit_scale|lambda_?\d*"
        r"|(^|[._])a_logs?)$",
    ),
    ("other", r"(^|[._])(p?relu|act(ivation)?)\d*[._]weight$"),
    ("embedding", r"emb(ed(ding)?s?)?(_\w+)?[._]weight$"),
    (
        "embedding",
        r"(^|[._])(w[tps]e|tok|tokens?|vocab|lookup|shared|relative_\w*bias)[._]weight$",
    ),
    (
        "norm",
        r"(norm\w*|(^|[._])(ln|bn|rms)\w*)([._]\d+)?[._](weight|bias|scale|offset)$",
    ),
    ("norm", r"(^|[._])(gamma|beta)$"),
    ("bias", r"(bias(_[ih]h)?(_l\d+(_reverse)?)?|(^|[._])b\d*)$"),
)
"""A role, and what lower-case names speak for it; the first that fits, if the shape
allows it."""

OUTPUT = re.compile(
    r"(^|[._])(lm_head|embed_out|unembed|aux\d+[._]fc2)[._]weight$"
    r"|^(head|fc|classifier|output|out|logits)[._]weight$"
)
"""Names of matrices that make an output wherever they stand; without any, the last one
does."""

UNNAMED = re.compile(r"parameter \d+$")
"""What `build_graph` and optimizers call parameters without a name."""

FUSED = (
    (
        3,
        re.compile(
            r"(^|[._])(w?qkv(_\w+)?|to_qkv|c_attn|in_proj|query_key_value)[._]?weight$"
        ),
    ),
    (
        2,
        re.compile(r"(^|[._])(w?kv|to_kv|kv_proj|key_value|gate_up_proj)[._]weight$"),
    ),
)
"""How many matrices of one size a weight of such a name holds, one after the other."""

GATES = re.compile(r"weight_[ih]h(_l\d+)?(_reverse)?$")
IN_OUT = re.compile(r"(^|[._])(c_attn|c_proj|c_fc|q_attn)[._]weight$")
"""Names of GPT-2's layers, whose weights are (in, out) in transformers and (out, in)
elsewhere."""
EXPERTS = re.compile(r"(^|[._])experts?([._]|$)")


class Names:
    """What the names and shapes of all parameters together say about each."""

    def __init__(
        self, specs: Sequence[ParameterSpec], guesses: Sequence[tuple[str, str]]
    ):
        """guesses: roles for parameters whose names say nothing.

        Two for each: one that fits the other parameters of its module, and one that
        fits the order of all, which counts where a parameter is called neither weight
        nor bias.
        """
        self.specs = specs
        self.places = {spec.name: i for i, spec in enumerate(specs)}
        named = [i for i, spec in enumerate(specs) if IN_OUT.search(spec.name)]
        self.transposed = any(self._by_bias(i) for i in named)
        usual = [bool(re.search(r"(weight|bias)[^.]*$", spec.name)) for spec in specs]
        own = [
            pair[0] if u else pair[1] for pair, u in zip(guesses, usual, strict=True)
        ]
        self.roles = [self._role(i, guess) for i, guess in enumerate(own)]
        self._find_outputs()

    def blocks(self, number: int) -> tuple[MatrixBlock, ...]:
        """The matrices of a parameter; () if it holds none."""
        role = self.roles[number]
        spec = self.specs[number]
        if role not in ("embedding", "output", "matrix"):
            return ()
        shape = list(spec.shape)
        strides = list(contiguous_strides(spec.shape))
        if role == "embedding" or self._is_in_out(number):
            shape[:2], strides[:2] = shape[1::-1], strides[1::-1]
        count = self._count(number, shape)
        if EXPERTS.search(spec.name) and _dims(spec) == 3:
            return (MatrixBlock(View(number, tuple(shape), tuple(strides))),)
        rows = shape[0] // count
        lead = (count, rows), (strides[0] * rows, strides[0])
        view = View(number, (*lead[0], *shape[1:]), (*lead[1], *strides[1:]))
        # which neurons parts read is not known, only that they are the same
        return (MatrixBlock(view, columns=((),) * count),)

    def _role(self, number: int, guess: str) -> str:
        spec = self.specs[number]
        dims = _dims(spec)
        name = spec.name.lower()
        for role, pattern in NAMES:
            if re.search(pattern, name) and self._allows(number, role, guess):
                return role
        if dims < 2:
            is_scalar = spec.numel <= 1 and guess == "norm"
            return "other" if is_scalar or guess not in ("norm", "bias") else guess
        sides = sum(n > 1 for n in spec.shape[:dims])
        # of maps whose channels are last
        is_factor = tuple(spec.shape[:3]) == (1, 1, 1)
        is_weight = name.endswith("weight") and not is_factor
        if not is_weight and (sides < 2 or (dims == 3 and spec.shape[0] == 1)):
            return "other"
        is_fused = any(pattern.search(name) for _, pattern in FUSED)
        return "embedding" if guess == "embedding" and not is_fused else "matrix"

    def _allows(self, number: int, role: str, guess: str) -> bool:
        """Whether a role fits a parameter's shape, and the module that its name says it
        is in."""
        spec = self.specs[number]
        if role == "embedding":
            return _dims(spec) == 2 and self._bias(number) is None
        if role == "other":
            return True
        if role == "bias" and guess == "norm":  # in a module of two vectors
            return False
        return _dims(spec) == 1 or (
            sum(n > 1 for n in spec.shape) <= 1 and role == "norm"
        )

    def _find_outputs(self) -> None:
        """By name, else the last matrix, unless it leads back to the neurons of the
        first table."""
        matrices = [i for i, role in enumerate(self.roles) if role == "matrix"]
        tables = [i for i, role in enumerate(self.roles) if role == "embedding"]
        found = [i for i in matrices if OUTPUT.search(self.specs[i].name.lower())]
        if matrices and not found:
            last = matrices[-1]
            rows = self.specs[last].shape[int(self._is_in_out(last))]
            is_tied = bool(tables) and rows == self.specs[tables[0]].shape[1]
            found = [] if is_tied else [last]
        for i in found:
            self.roles[i] = "output"

    def _bias(self, number: int) -> ParameterSpec | None:
        """The bias beside a weight."""
        name = self.specs[number].name
        if UNNAMED.match(name):
            following = self.specs[number + 1 : number + 2]
            return following[0] if following and _dims(following[0]) == 1 else None
        if not name.endswith("weight"):
            return None
        place = self.places.get(name.removesuffix("weight") + "bias")
        return None if place is None else self.specs[place]

    def _by_bias(self, number: int) -> bool:
        """Whether the bias beside a weight has the size of its columns, and not of its
        rows."""
        spec = self.specs[number]
        bias = self._bias(number)
        if bias is None or len(spec.shape) < 2 or spec.shape[0] == spec.shape[1]:
            return False
        return bias.shape == spec.shape[1:2]

    def _is_in_out(self, number: int) -> bool:
        spec = self.specs[number]
        if len(spec.shape) < 2:
            return False
        is_square = spec.shape[0] == spec.shape[1]
        is_named = bool(IN_OUT.search(spec.name))
        return self._by_bias(number) or (is_square and is_named and self.transposed)

    def _count(self, number: int, shape: Sequence[int]) -> int:
        """How many matrices are one behind the other in the rows of a weight."""
        name = self.specs[number].name
        gates = GATES.search(name)
        if gates:
            return self._gates(name)
        for count, pattern in FUSED:
            if pattern.search(name.lower()) and shape[0] % count == 0:
                return count
        return 1

    def _gates(self, name: str) -> int:
        """Four of an LSTM, three of a GRU: so many times a state is in the rows of its
        W_hh."""
        projection = re.sub("weight_[ih]h", "weight_hr", name)
        if projection in self.places:
            return 4
        own = self.specs[self.places[re.sub("weight_[ih]h", "weight_hh", name)]]
        ratio = own.shape[0] // own.shape[1]
        return ratio if ratio in (3, 4) and own.shape[0] == ratio * own.shape[1] else 1


def _dims(spec: ParameterSpec) -> int:
    """The dimensions that a parameter has itself; real pairs have one more."""
    return len(spec.shape) - spec.is_complex

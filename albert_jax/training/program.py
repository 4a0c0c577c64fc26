# SPDX-License-Identifier: Apache-2.0
"""What a compiled program does, read from its HLO text: products, memory traffic, collectives, and loops around them.

`compiled.cost_analysis()` counts the body of a loop once, and says nothing of where a collective stands. Here each
operation counts as often as its loops run.
"""

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

COLLECTIVES = (
    "all-reduce",
    "reduce-scatter",
    "all-gather",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
REDUCTIONS = COLLECTIVES[:2]
# Custom calls that multiply nothing: they allocate, rename, or tell the compiler something.
_NO_PRODUCTS = {
    *("AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound", "GatherScatterIndicesBitpacked", "Sharding"),
    *("SPMDFullToShardShape", "SPMDShardToFullShape", "annotate_device_placement", "TopK"),
}
# What these name is where it was; they move nothing.
_FREE = {
    *("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "while", "conditional", "call", "after-all"),
    *("partition-id", "replica-id", "iota", "opt-barrier", "async-start", "async-update", "async-done", "custom-call"),
}
_ON_CHIP = re.compile(r"S\([1-9]")  # a memory space other than the first
_SLICES = ("dynamic-slice", "slice", "gather")
_CALLEE = re.compile(
    r"\b(?:calls|body|true_computation|false_computation)=%([\w.\-]+)|\bbranch_computations=\{([^}]*)\}"
)


class Array(NamedTuple):
    """Type and size of one array; `in_hbm` is False where the compiler has put it into the chip's own memory."""

    bits: int
    dims: tuple[int, ...]
    in_hbm: bool

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> float:
        """Without the padding of tiles."""
        return self.size * self.bits / 8


class Collective(NamedTuple):
    """One collective.

    Attributes:
      kind: one of `COLLECTIVES`.
      bytes: of the whole array on one device: what is reduced or scattered, or what was gathered or sent.
      group: devices that take part together; 0 where the text says all.
    """

    kind: str
    bytes: float
    group: int


class Operation(NamedTuple):
    """One operation that a device executes, on its own share of the arrays.

    Attributes:
      name, opcode: as the text has them.
      flops: of its matrix products, each time.
      traffic: bytes between the chip and its high-bandwidth memory, each time.
      collectives: what it exchanges with other devices, each time.
      cycles: that the compiler expects each time to take; 0 where it does not say, as for CPUs.
      loops: how often each of the loops around it runs, outermost first.
      origin: the JAX operation that it comes from, as far as the text says.
    """

    name: str
    opcode: str
    flops: float
    traffic: float
    collectives: tuple[Collective, ...]
    cycles: int
    loops: tuple[int, ...]
    origin: str

    @property
    def times(self) -> int:
        """How often it is executed."""
        return math.prod(self.loops)


class Program(NamedTuple):
    """All operations of one device, in no particular order; of a conditional, those of every branch."""

    operations: tuple[Operation, ...]

    @property
    def flops(self) -> float:
        """Of all matrix products."""
        return sum(o.flops * o.times for o in self.operations)

    @property
    def traffic(self) -> float:
        """Bytes between the chip and its high-bandwidth memory."""
        return sum(o.traffic * o.times for o in self.operations)

    @property
    def collectives(self) -> list[tuple[Collective, tuple[int, ...]]]:
        """Every collective, with how often each loop around it runs."""
        return [(c, o.loops) for o in self.operations for c in o.collectives]

    @property
    def reduced_bytes(self) -> float:
        """Bytes that are summed over devices."""
        return sum(c.bytes * math.prod(loops) for c, loops in self.collectives if c.kind in REDUCTIONS)


def read_program(
    text: str, *, kernels: Mapping[str, Callable[[list[Array]], float]] | None = None, unknown_trips: int | None = None
) -> Program:
    """Reads what `compiled.as_text()` gives.

    Args:
      text: HLO after optimisation.
      kernels: custom call target -> FLOPs of its products from its operands, for kernels written by hand.
      unknown_trips: how often a loop runs whose number the text does not show.

    Raises:
      ValueError: where a custom call may hold products and is not in `kernels`, or a loop's number of runs is not shown
        and not given.
    """
    return Program(tuple(_Reader(text, kernels or {}, unknown_trips).operations()))


# --- the text ---------------------------------------------------------------------------------------------------------


class _Instruction(NamedTuple):
    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    literal: str  # what stands between the parentheses
    is_root: bool


class _Computation(NamedTuple):
    instructions: dict[str, _Instruction]

    @property
    def root(self) -> _Instruction:
        return next(i for i in self.instructions.values() if i.is_root)

    def parameter(self, number: int) -> _Instruction:
        return next(i for i in self.instructions.values() if i.opcode == "parameter" and int(i.literal) == number)


def _closing(text: str, start: int) -> int:
    """Where the parenthesis that opens at `start` closes."""
    depth = 0
    for at in range(start, len(text)):
        depth += (text[at] == "(") - (text[at] == ")")
        if depth == 0:
            return at
    raise ValueError(f"unbalanced parentheses in {text[:80]!r}")


def _instruction(line: str) -> _Instruction | None:
    """Parses one line, or gives None where it is none."""
    match = re.match(r"\s+(ROOT )?%([\w.\-]+) = ", line)
    if not match:
        return None
    at = match.end()
    end = _closing(line, at) + 1 if line[at] == "(" else line.index(" ", at)
    opening = line.index("(", end)
    closing = _closing(line, opening)
    literal = line[opening + 1 : closing]
    operands = tuple(re.findall(r"%([\w.\-]+)", literal))
    opcode = line[end:opening].strip()
    return _Instruction(match[2], line[at:end], opcode, operands, line[closing + 1 :], literal, bool(match[1]))


def _computations(text: str) -> tuple[dict[str, _Computation], str]:
    """All computations by name, and the name of the one that is the program."""
    computations: dict[str, _Computation] = {}
    entry, current = "", _Computation({})
    for line in text.splitlines():
        header = re.match(r"(ENTRY )?%([\w.\-]+) \(.*\{$", line)
        if header:
            current = computations[header[2]] = _Computation({})
            entry = header[2] if header[1] else entry
        elif instruction := _instruction(line):
            current.instructions[instruction.name] = instruction
    if not entry:
        raise ValueError("the text holds no ENTRY computation; give what compiled.as_text() returns.")
    return computations, entry


def _bits(dtype: str) -> int:
    digits = re.search(r"\d+", dtype)
    return int(digits[0]) if digits else 8 if dtype == "pred" else 0


def _arrays(shape: str) -> list[Array]:
    """The arrays of a shape or of a (nested) tuple of shapes."""
    found = re.findall(r"\b([a-z]\w*)\[([\d,<= ]*)\](\{[^}]*\})?", shape)
    return [
        Array(_bits(dtype), tuple(int(d.strip("<= ")) for d in dims.split(",") if d), not _ON_CHIP.search(layout))
        for dtype, dims, layout in found
    ]


# --- products ---------------------------------------------------------------------------------------------------------


def _dot_flops(out: Array, left: Array, attributes: str) -> float:
    """Two for each multiply-add of a `dot`."""
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", attributes)
    dims = [int(d) for d in contracted[1].split(",") if d] if contracted else []
    return 2.0 * out.size * math.prod(left.dims[d] for d in dims)


def _window(attributes: str, dims: int) -> Iterator[dict[str, Any]]:
    """Size, stride, padding and dilations of each spatial dimension of a convolution."""
    window = re.search(r"window=\{([^}]*)\}", attributes)
    fields = dict(part.split("=") for part in window[1].split()) if window else {}
    values = {name: value.split("x") for name, value in fields.items()}
    for d in range(dims):
        number = {name: int(values[name][d]) if name in values else 1 for name in ("size", "stride")}
        dilations = {name: int(values[name][d]) if name in values else 1 for name in ("lhs_dilate", "rhs_dilate")}
        low = int(values["pad"][d].split("_")[0]) if "pad" in values else 0
        yield number | dilations | {"low": low}


def _convolution_flops(out: Array, left: Array, attributes: str) -> float:
    """Two for each multiply-add of a `convolution`, not counting those with padding or with dilation's holes.

    The TPU compiler turns every product of matrices into one; batch dimensions become spatial ones, dilated so that
    each output meets one input only.
    """
    labels = re.search(r"dim_labels=(\w+)_\w+->(\w+)", attributes)
    if not labels:
        raise ValueError(f"a convolution without dim_labels: {attributes[:80]!r}")
    groups = {name: re.search(rf"{name}_group_count=(\d+)", attributes) for name in ("feature", "batch")}
    per = {name: int(match[1]) if match else 1 for name, match in groups.items()}
    ins, outs = dict(zip(labels[1], left.dims, strict=True)), dict(zip(labels[2], out.dims, strict=True))
    pairs = 1
    for d, w in enumerate(_window(attributes, len(ins) - 2)):
        steps, taps = np.arange(outs[str(d)])[:, None], np.arange(w["size"])
        at = steps * w["stride"] - w["low"] + taps * w["rhs_dilate"]
        last = (ins[str(d)] - 1) * w["lhs_dilate"]
        pairs *= int(np.count_nonzero((at >= 0) & (at <= last) & (at % w["lhs_dilate"] == 0)))
    return 2.0 * (ins["f"] // per["feature"]) * outs["f"] * (ins["b"] // per["batch"]) * pairs


# --- the program ------------------------------------------------------------------------------------------------------


class _Reader:
    """Walks from the entry through fusions, branches and loops."""

    def __init__(self, text: str, kernels: Mapping[str, Callable[[list[Array]], float]], unknown_trips: int | None):
        self.computations, self.entry = _computations(text)
        self.kernels, self.unknown_trips = kernels, unknown_trips

    def operations(self) -> Iterator[Operation]:
        """Every operation that is executed."""
        yield from self._walk(self.entry, ())

    def _walk(self, name: str, loops: tuple[int, ...]) -> Iterator[Operation]:
        computation = self.computations[name]
        for i in computation.instructions.values():
            if i.opcode == "while":
                (body,) = self._callees(i)
                yield from self._walk(body, (*loops, self._trips(computation, i)))
            elif i.opcode in ("call", "conditional", "async-start"):
                for callee in self._callees(i):
                    yield from self._walk(callee, loops)
            else:
                flops, exchanged = self._flops(computation, i), tuple(self._collectives(computation, i))
                origin = re.search(r'op_name="([^"]*)"', i.attributes)
                traffic, expected = (
                    self._traffic(computation, i),
                    re.search(r'"estimated_cycles":"(\d+)"', i.attributes),
                )
                cycles = int(expected[1]) if expected else 0
                if flops or exchanged or traffic or cycles:
                    name = origin[1] if origin else ""
                    yield Operation(i.name, i.opcode, flops, traffic, exchanged, cycles, loops, name)

    def _callees(self, i: _Instruction) -> list[str]:
        if i.opcode == "call":
            return re.findall(r"\bto_apply=%([\w.\-]+)", i.attributes)
        found = _CALLEE.findall(i.attributes)
        return [name for one, many in found for name in ([one] if one else re.findall(r"%([\w.\-]+)", many))]

    def _operands(self, computation: _Computation, i: _Instruction) -> list[Array]:
        """The arrays of all operands."""
        return [a for name in i.operands for a in _arrays(computation.instructions[name].shape)]

    def _flops(self, computation: _Computation, i: _Instruction) -> float:
        if i.opcode == "fusion":
            fused = [self.computations[callee] for callee in self._callees(i)]
            return sum(self._flops(f, inner) for f in fused for inner in f.instructions.values())
        if i.opcode in ("dot", "convolution"):
            count = _dot_flops if i.opcode == "dot" else _convolution_flops
            return count(_arrays(i.shape)[0], self._operands(computation, i)[0], i.attributes)
        if i.opcode == "custom-call":
            return self._kernel_flops(computation, i)
        return 0.0

    def _kernel_flops(self, computation: _Computation, i: _Instruction) -> float:
        named = re.search(r'custom_call_target="([^"]*)"', i.attributes)
        target, operands = named[1] if named else "", self._operands(computation, i)
        if target in self.kernels:
            return self.kernels[target](operands)
        if target in _NO_PRODUCTS or sum(len(a.dims) >= 2 for a in operands) < 2:
            return 0.0
        raise ValueError(f"the custom call {target!r} may hold products; give its FLOPs in `kernels`.")

    def _collectives(self, computation: _Computation, i: _Instruction) -> Iterator[Collective]:
        if i.opcode == "fusion":
            for f in (self.computations[callee] for callee in self._callees(i)):
                for inner in f.instructions.values():
                    yield from self._collectives(f, inner)
        kind = i.opcode.removesuffix("-start")
        if kind not in COLLECTIVES:
            return
        taken, given = self._operands(computation, i), _arrays(i.shape)
        if i.opcode.endswith("-start") and kind != "all-reduce":  # it names operands, results and what it works with
            given = given[len(taken) :][: len(taken)]
        one = re.search(r"replica_groups=\{\{([\d,]+)\}", i.attributes)
        iota = re.search(r"replica_groups=\[\d+,(\d+)\]<=", i.attributes)
        group = len(one[1].split(",")) if one else int(iota[1]) if iota else 0
        yield Collective(kind, sum(a.bytes for a in (taken if kind in REDUCTIONS else given)), group)

    # --- how often a loop runs ----------------------------------------------------------------------------------------

    def _trips(self, computation: _Computation, loop: _Instruction) -> int:
        """From what the compiler notes, or from the condition of a loop that counts upwards."""
        noted = re.search(r'known_trip_count[^}]*?"n":\s*"(\d+)"', loop.attributes)
        trips = int(noted[1]) if noted else self._counted(computation, loop)
        if trips is None:
            trips = self.unknown_trips
        if trips is None:
            raise ValueError(f"the text does not show how often the loop {loop.name!r} runs; give `unknown_trips`.")
        return trips

    def _counted(self, computation: _Computation, loop: _Instruction) -> int | None:
        named = {name: re.search(rf"\b{name}=%([\w.\-]+)", loop.attributes) for name in ("condition", "body")}
        condition, body = (self.computations[match[1]] for match in named.values() if match)
        test = condition.root
        if test.opcode != "compare" or "direction=LT" not in test.attributes:
            return None
        counter = condition.instructions[test.operands[0]]
        index = re.search(r"index=(\d+)", counter.attributes)
        start = computation.instructions[loop.operands[0]]
        if counter.opcode != "get-tuple-element" or not index or start.opcode != "tuple" or body.root.opcode != "tuple":
            return None
        at = int(index[1])
        end = self._constant(condition, test.operands[1], computation, start)
        begin = self._constant(computation, start.operands[at])
        step = body.instructions[body.root.operands[at]]
        steps = [self._constant(body, name) for name in step.operands] if step.opcode == "add" else []
        by = next((s for s in steps if s), None)
        return None if end is None or begin is None or by is None else max(0, -(-(end - begin) // by))

    def _constant(
        self,
        computation: _Computation,
        name: str,
        outer: _Computation | None = None,
        carried: _Instruction | None = None,
    ) -> int | None:
        """An integer that is written in the text, also where the loop carries it unchanged from outside."""
        i = computation.instructions[name]
        if i.opcode == "constant":
            return int(i.literal) if re.fullmatch(r"-?\d+", i.literal) else None
        if i.opcode in ("copy", "bitcast", "convert", "copy-done", "copy-start"):
            return self._constant(computation, i.operands[0], outer, carried)
        index = re.search(r"index=(\d+)", i.attributes)
        if i.opcode == "get-tuple-element" and index and outer and carried:
            return self._constant(outer, carried.operands[int(index[1])])
        return None

    # --- memory traffic -----------------------------------------------------------------------------------------------

    def _traffic(self, computation: _Computation, i: _Instruction) -> float:
        """Bytes that one execution reads from and writes to high-bandwidth memory.

        An operation reads each operand and writes its result once. Of what it only slices, it reads the slice; what it
        updates in place, it writes alone.
        """
        if i.opcode in _FREE or i.opcode.endswith("-done") or i.opcode.removesuffix("-start") in COLLECTIVES:
            return 0.0
        if i.opcode == "fusion":
            (callee,) = (self.computations[name] for name in self._callees(i))
            read = sum(self._read(callee, callee.parameter(n).name) for n in range(len(i.operands)))
            return read + self._written(callee, callee.root, _arrays(i.shape))
        outs = _arrays(i.shape)
        if i.opcode in ("copy-start", "slice-start"):
            outs = outs[:1] if i.opcode == "copy-start" else outs[1:2]
        read = sum(self._read_by(computation, i, n) for n in range(len(i.operands)))
        return read + self._written(computation, i, outs)

    def _read(self, fused: _Computation, name: str) -> float:
        """Bytes of a fusion's parameter that the fusion reads."""
        whole = sum(a.bytes for a in _arrays(fused.instructions[name].shape) if a.in_hbm)
        if not whole:
            return 0.0
        users = [(u, n) for u in fused.instructions.values() for n, o in enumerate(u.operands) if o == name]
        return min(whole, sum(self._read_by(fused, u, n) for u, n in users))

    def _read_by(self, computation: _Computation, i: _Instruction, number: int) -> float:
        """Bytes of operand `number` that instruction `i` reads."""
        arrays = _arrays(computation.instructions[i.operands[number]].shape)
        whole = sum(a.bytes for a in arrays if a.in_hbm)
        if i.opcode in (*_SLICES, "slice-start") and number == 0:
            outs = _arrays(i.shape)
            return min(whole, sum(a.bytes for a in outs) if i.opcode in _SLICES else outs[1].bytes)
        if i.opcode == "dynamic-update-slice" and number == 0:
            return 0.0
        if i.opcode in ("bitcast", "tuple", "get-tuple-element") and not i.is_root:
            return min(whole, self._read(computation, i.name)) if i.opcode == "bitcast" else whole
        if i.opcode == "fusion":
            (callee,) = (self.computations[name] for name in self._callees(i))
            return min(whole, self._read(callee, callee.parameter(number).name))
        return whole

    def _written(self, computation: _Computation, i: _Instruction, outs: list[Array]) -> float:
        """Bytes that instruction `i`, with results `outs`, writes."""
        if i.opcode == "tuple":
            parts = [computation.instructions[name] for name in i.operands]
            sizes = [len(_arrays(part.shape)) for part in parts]
            ends = list(itertools.accumulate(sizes))
            return sum(
                self._written(computation, part, outs[end - size : end])
                for part, size, end in zip(parts, sizes, ends, strict=True)
            )
        if i.opcode == "bitcast":
            return self._written(computation, computation.instructions[i.operands[0]], outs)
        whole = sum(a.bytes for a in outs if a.in_hbm)
        if i.opcode == "dynamic-update-slice":
            return min(whole, sum(a.bytes for a in _arrays(computation.instructions[i.operands[1]].shape)))
        if i.opcode == "fusion":
            (callee,) = (self.computations[name] for name in self._callees(i))
            return min(whole, self._written(callee, callee.root, outs))
        return whole

"""The text of a compiled program: its computations, their instructions, and the source line of each."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) .*->.*\{$")
# NAME = TYPE OPCODE(OPERANDS), ATTRIBUTES. Types have brackets too, but none directly after a word.
_INSTRUCTION = re.compile(
    r" +(?:ROOT )?%?([\w.\-]+) = (\S.*?) ([a-z][a-z0-9\-]*)\((.*?)\)(?:, (\w+=.*))?$"
)
_NAMED = re.compile(r" +(?:ROOT )?%?[\w.\-]+ = ")
_END = re.compile(r'(\}(, execution_thread="\w+")?)?$')  # of a computation, and empty lines
_CALLED = re.compile(r"\b(calls|body|condition|to_apply|branch_computations|true_computation|"
                     r"false_computation|called_computations)=(\{[^}]*\}|%?[\w.\-]+)")  # fmt: skip
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_FRAME = re.compile(r"\bstack_frame_id=(\d+)")
# The tables of source locations before the first computation, one entry a line: `3 "name"` or `3 {key=7 ...}`.
_ENTRY = re.compile(r'(\d+) (?:"(.*)"|\{(.*)\})$')


@dataclass(frozen=True)
class Instruction:
    """One operation of HLO."""

    type: str
    opcode: str
    operands: str
    attributes: str

    @property
    def called(self) -> list[tuple[str, str]]:
        """(role, computation) of every computation that it runs."""
        found = _CALLED.findall(self.attributes)
        return [(role, name) for role, names in found for name in re.findall(r"[\w.\-]+", names)]


class Frame(NamedTuple):
    """A call in the source."""

    file: str
    function: str
    line: int


@dataclass(frozen=True)
class HloModule:
    """A parsed text. computations: by name, each with its instructions by name; entry: the name of the one that runs.

    frames: by number, the innermost call and the number of the frame that called it (0: none).
    """

    computations: Mapping[str, Mapping[str, Instruction]]
    entry: str
    frames: Mapping[int, tuple[Frame, int]]

    def trips(self, loop: Instruction) -> int:
        """Number of trips of a loop: noted by XLA, else the only constant of its condition."""
        if noted := _TRIPS.search(loop.attributes):
            return int(noted[1])
        limits = [
            int(i.operands)
            for i in self.computations[dict(loop.called)["condition"]].values()
            if i.opcode == "constant" and re.fullmatch(r"[su]\d+\[\]\S*", i.type)
        ]
        return limits[0] if len(limits) == 1 else 1

    def stack(self, instruction: Instruction) -> list[Frame]:
        """The calls that made an instruction, innermost first; [] if the text has none."""
        found = _FRAME.search(instruction.attributes)
        number, calls = int(found[1]) if found else 0, []
        while number in self.frames:
            frame, number = self.frames[number]
            calls.append(frame)
        return calls


def parse_hlo(hlo: str) -> HloModule:
    """The program of a text. Raises ValueError for an instruction of an unknown form."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry, here = "", {}
    for line in _joined(re.sub(r"/\*[^*]*\*/", "", hlo)):
        if head := _COMPUTATION.match(line):
            here = computations.setdefault(head[2], {})
            entry = head[2] if head[1] else entry
        elif found := _INSTRUCTION.match(line):
            name, *parts = found.groups("")
            here[name] = Instruction(*parts)
        elif _NAMED.match(line):
            raise ValueError(f"unknown form of an instruction: {line[:200]}")
    return HloModule(computations, entry, _frames(hlo))


def _joined(hlo: str) -> Iterator[str]:
    """Lines; an instruction that is printed over several, as calls of Pallas are, is one."""
    open_instruction = ""
    for line in hlo.splitlines():
        starts = _NAMED.match(line) or _COMPUTATION.match(line) or _END.match(line)
        if starts and open_instruction:
            yield open_instruction
            open_instruction = ""
        if _NAMED.match(line):
            open_instruction = line
        elif open_instruction:
            open_instruction += " " + line.strip()
        else:
            yield line
    yield open_instruction


def _frames(hlo: str) -> dict[int, tuple[Frame, int]]:
    tables: dict[str, dict[int, str]] = {}
    title = ""
    for line in hlo.splitlines():
        if _COMPUTATION.match(line):
            break
        if entry := _ENTRY.match(line):
            tables.setdefault(title, {})[int(entry[1])] = entry[2] or entry[3] or ""
        elif line:
            title = line
    places = {}
    for number, text in tables.get("FileLocations", {}).items():
        at = _numbers(text)
        file = tables["FileNames"][at["file_name_id"]]
        function = tables["FunctionNames"][at["function_name_id"]]
        places[number] = Frame(file, function, at["line"])
    # The text counts frames from 1 and their callers from 2: 1 stands for none.
    return {
        number: (places[at["file_location_id"]], at["parent_frame_id"] - 1)
        for number, text in tables.get("StackFrames", {}).items()
        for at in [_numbers(text)]
    }


def _numbers(text: str) -> dict[str, int]:
    return {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", text)}

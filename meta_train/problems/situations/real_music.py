"""Bach's chorales of the package music21, to predict the next notes."""

import zipfile
from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import torch
from torch import nn

from meta_train.problems.networks.sequential import CharacterRnn, Gpt
from meta_train.problems.situations.packaged import packaged
from meta_train.problems.situations.problems import classify
from meta_train.problems.supervised import Splits
from meta_train.problems.text import windows_of

FOLDER = "corpus/bach"
VOICES = "Soprano", "Alto", "Tenor", "Bass"  # 364 of the 408 files have these parts
REST = 0  # the code of a rest; other codes are pitches as MIDI numbers
PITCHES = 128  # number of codes
SEMITONES = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
CYCLE = 5  # chorales, of which one is for validation and one for test
TRAIN_STRIDE = 4  # codes between the starts of training windows


class Note(NamedTuple):
    """A pitch or `REST`, and a length in quarter notes. Tied notes are one note."""

    pitch: int
    length: float


Part = list[Note]
Encoding = Callable[[Sequence[Part]], list[list[int]]]  # chorale -> sequences of codes


def read_mxl(path: Path) -> Element:
    """The score of a compressed MusicXML file."""
    with zipfile.ZipFile(path) as archive:
        container = ElementTree.fromstring(archive.read("META-INF/container.xml"))
        root = container.find(".//{*}rootfile")
        assert root is not None
        return ElementTree.fromstring(archive.read(root.attrib["full-path"]))


def parts_of(score: Element) -> dict[str, Part]:
    """The notes of each part by its name, without grace notes and lower chord notes."""
    names = {}
    for part in score.iter("score-part"):
        names[part.get("id")] = str(part.findtext("part-name"))
    parts = {}
    for part in score.iter("part"):
        parts[names[part.get("id")]] = _notes(part)
    return parts


def _notes(part: Element) -> Part:
    notes: Part = []
    divisions = 1
    for measure in part.iter("measure"):
        for child in measure:
            divisions = int(child.findtext("divisions") or divisions)
            duration = child.findtext("duration")
            if child.tag != "note" or duration is None:
                continue
            if child.find("chord") is not None:
                continue
            pitch, length = _pitch(child), int(duration) / divisions
            is_tied = child.find("tie[@type='stop']") is not None
            if is_tied and notes and notes[-1].pitch == pitch:
                length += notes.pop().length
            notes.append(Note(pitch, length))
    return notes


def _pitch(note: Element) -> int:
    """The MIDI number: 60 for middle C."""
    pitch = note.find("pitch")
    if pitch is None:
        return REST
    step = pitch.findtext("step", "C")
    octave = int(pitch.findtext("octave", "0"))
    alter = int(float(pitch.findtext("alter", "0")))
    return 12 * (octave + 1) + SEMITONES[step] + alter


def melodies(parts: Sequence[Part]) -> list[list[int]]:
    """The pitches of each voice as a sequence."""
    return [[note.pitch for note in part] for part in parts]


def chords(parts: Sequence[Part]) -> list[list[int]]:
    """The pitches at every quarter note, highest voice first, as one sequence."""
    pitches = zip(*map(_at_quarters, parts), strict=False)
    return [list(chain.from_iterable(pitches))]


def _at_quarters(part: Part) -> list[int]:
    pitches: list[int] = []
    end = 0.0
    for note in part:
        end += note.length
        while len(pitches) < end:
            pitches.append(note.pitch)
    return pitches


@cache
def chorales() -> tuple[tuple[Part, ...], ...]:
    """The parts of every chorale whose parts are `VOICES`, ordered by file name."""
    chorales = []
    for path in sorted(packaged("music21", FOLDER).glob("*.mxl")):
        parts = parts_of(read_mxl(path))
        if tuple(parts) == VOICES:
            chorales.append(tuple(parts.values()))
    return tuple(chorales)


@cache
def next_pitches(encoding: Encoding, length: int) -> Splits:
    """Windows of codes, to predict each next code from those before.

    Each chorale is in one split, but several chorales can have the same melody.
    """
    codes: list[int] = []
    starts: tuple[list[int], ...] = [], [], []
    for number, parts in enumerate(chorales()):
        split = max(number % CYCLE - 2, 0)  # 0, 0, 0, 1, 2
        stride = length if split else TRAIN_STRIDE
        for sequence in encoding(parts):
            end = len(codes) + len(sequence) - length
            starts[split].extend(range(len(codes), end, stride))
            codes += sequence
    return windows_of(torch.tensor(codes), list(map(torch.tensor, starts)), length)


MELODIES = partial(next_pitches, melodies, 24)
CHORDS = partial(next_pitches, chords, 48)

PROBLEMS = {
    "real-melodies-gru": classify(
        MELODIES, 16, 300, CharacterRnn, nn.GRU, PITCHES, 24, 64
    ),
    "real-chords-gpt": classify(CHORDS, 16, 200, Gpt, PITCHES, 48, 48, 4, 2),
}

"""Bach's chorales that come with the package music21, as notes to predict."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import torch

from meta_train.problems.situations.packaged import packaged
from meta_train.problems.supervised import Splits
from meta_train.problems.text import Windows

FOLDER = "corpus/bach"
VOICES = "Soprano", "Alto", "Tenor", "Bass"  # of 364 of the 408 files
REST, PITCHES = 0, 128  # codes are MIDI's numbers of pitches, which begin above 0
SEMITONES = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
CYCLE = 5  # of so many chorales one is for validation, one for test
TRAIN_STRIDE = 4  # codes between the beginnings of training windows


class Note(NamedTuple):
    """A pitch or `REST`, and for how many quarter notes; ties make one note of two."""

    pitch: int
    length: float


Part = list[Note]
Reading = Callable[[Sequence[Part]], list[list[int]]]  # of a chorale: lists of codes


def read_mxl(path: Path) -> Element:
    """The score of a compressed MusicXML file, which its container names."""
    with zipfile.ZipFile(path) as archive:
        container = ElementTree.fromstring(archive.read("META-INF/container.xml"))
        root = container.find(".//{*}rootfile")
        assert root is not None
        return ElementTree.fromstring(archive.read(root.attrib["full-path"]))


def parts_of(score: Element) -> dict[str, Part]:
    """The notes of each part by its name. Grace notes and lower chord notes are left
    out."""
    names = {
        one.get("id"): one.findtext("part-name") for one in score.iter("score-part")
    }
    return {
        str(names[part.get("id")]): _joined(_notes(part)) for part in score.iter("part")
    }


def _notes(part: Element) -> Iterator[tuple[Note, bool]]:
    """Each note, and whether it continues the one before."""
    divisions = 1
    for measure in part.iter("measure"):
        for child in measure:
            divisions = int(child.findtext("divisions") or divisions)
            duration = child.findtext("duration")
            if child.tag != "note" or duration is None:
                continue
            if child.find("chord") is None:
                ties = {tie.get("type") for tie in child.iter("tie")}
                yield Note(_pitch(child), int(duration) / divisions), "stop" in ties


def _joined(notes: Iterator[tuple[Note, bool]]) -> Part:
    found: Part = []
    for note, continues in notes:
        if continues and found and found[-1].pitch == note.pitch:
            note = Note(note.pitch, found.pop().length + note.length)
        found.append(note)
    return found


def _pitch(note: Element) -> int:
    """MIDI's number: 60 for the middle C."""
    pitch = note.find("pitch")
    if pitch is None:
        return REST
    step, octave = pitch.findtext("step"), pitch.findtext("octave")
    alter = float(pitch.findtext("alter") or 0)
    return 12 * (int(octave or 0) + 1) + SEMITONES[step or "C"] + int(alter)


def melodies(parts: Sequence[Part]) -> list[list[int]]:
    """The pitches of each voice, one after the other."""
    return [[note.pitch for note in part] for part in parts]


def chords(parts: Sequence[Part]) -> list[list[int]]:
    """What sounds at every quarter note: four pitches, the highest voice's first."""
    grids = [_at_quarters(part) for part in parts]
    return [[pitch for chord in zip(*grids, strict=False) for pitch in chord]]


def _at_quarters(part: Part) -> list[int]:
    found: list[int] = []
    end = 0.0
    for note in part:
        end += note.length
        while len(found) < end:
            found.append(note.pitch)
    return found


@cache
def chorales() -> tuple[tuple[Part, ...], ...]:
    """The four voices of every chorale that has them alone, in the order of file names."""
    found = []
    for path in sorted(packaged("music21", FOLDER).glob("*.mxl")):
        parts = parts_of(read_mxl(path))
        if tuple(parts) == VOICES:
            found.append(tuple(parts.values()))
    return tuple(found)


@cache
def next_pitches(reading: Reading, length: int) -> Splits:
    """Windows of codes, to predict every next code from those before.

    Every chorale is in one split alone; some melodies have several chorales.
    """
    codes: list[int] = []
    starts: tuple[list[int], ...] = [], [], []
    for number, parts in enumerate(chorales()):
        split = max(number % CYCLE - 2, 0)  # 0, 0, 0, 1, 2
        stride = length if split else TRAIN_STRIDE
        for sequence in reading(parts):
            last = len(codes) + len(sequence) - length - 1
            starts[split].extend(range(len(codes), last + 1, stride))
            codes += sequence
    tensor = torch.tensor(codes)
    return Splits(*(Windows(tensor, torch.tensor(own), length) for own in starts))

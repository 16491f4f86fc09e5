import sysconfig
from itertools import combinations
from pathlib import Path

import pytest
import torch

from meta_train.problems import text
from meta_train.problems.text import (
    BLOCK,
    CHARACTERS,
    FILES,
    VOCABULARY,
    files_of_windows,
    library_text,
    next_characters,
    window_starts,
)


def source(name):
    return (Path(sysconfig.get_paths()["stdlib"]) / name).read_text(encoding="utf-8")


def test_files_are_read_in_sorted_order_and_coded_by_character():
    codes, ends = library_text()
    assert list(FILES) == sorted(FILES)
    assert len(codes) == ends[-1] == sum(len(source(name)) for name in FILES)
    assert "".join(CHARACTERS[code] for code in codes[:500]) == source(FILES[0])[:500]
    assert codes.min() >= 0 and codes.max() < VOCABULARY


def test_splits_share_no_block():
    ends = torch.tensor([50 * BLOCK + 17, 54 * BLOCK + 20])
    blocks_of_splits = []
    for starts in window_starts(ends, 65):
        assert starts.max() + 65 <= ends[-1]
        positions = starts[:, None] + torch.arange(65)
        second = positions >= ends[0]
        in_second = 100 + (positions - ends[0]) // BLOCK
        blocks = torch.where(second, in_second, positions // BLOCK)
        assert (blocks == blocks[:, :1]).all()
        blocks_of_splits.append(set(blocks.flatten().tolist()))
    for first, second in combinations(blocks_of_splits, 2):
        assert not first & second
    assert blocks_of_splits[1] == {8, 18, 28, 38, 48}
    assert blocks_of_splits[2] == {9, 19, 29, 39, 49}
    assert len(blocks_of_splits[0]) == 40 + 4


def test_longer_files_only_shift_the_training_windows_of_later_files():
    _, ends = library_text()
    starts = window_starts(ends, 65)[0]
    files = set(torch.searchsorted(ends, starts, right=True).tolist())
    assert files == set(range(len(FILES)))
    longer = ends.clone()
    longer[3:] += 5000
    later = window_starts(longer, 65)[0]
    moved = set((later[later >= longer[3]] - 5000).tolist())
    assert moved == set(starts[starts >= ends[3]].tolist())


def test_targets_are_the_next_characters():
    inputs, targets = next_characters(20).validation.batch(torch.arange(5))
    assert inputs.shape == targets.shape == (5, 20)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])


def test_windows_are_labelled_by_the_file_of_their_start():
    codes, files = files_of_windows(40).test.batch(torch.arange(30))
    for window, file in zip(codes, files.tolist(), strict=True):
        codes_of_text = [code for code in window[:10] if code < len(CHARACTERS)]
        beginning = "".join(CHARACTERS[code] for code in codes_of_text)
        assert beginning in source(FILES[file]) or len(beginning) < 10


def test_missing_sources_of_python_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(text.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    library_text.cache_clear()
    message = "_pydecimal.py': expected for problems on text"
    with pytest.raises(ValueError, match=message):
        library_text()
    library_text.cache_clear()

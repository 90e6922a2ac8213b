"""Sequences whose items lie in a temporary file."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from nacd.errors import UserError
from nacd.store import spool
from nacd.store.spool import Spooled


class Texts(Spooled[str]):
    def _pack(self, value: str) -> bytes:
        return value.encode()

    def _unpack(self, record: bytes) -> str:
        return record.decode()


WORDS = [f"{'word ' * (i % 7)}{i}" for i in range(100)]


@pytest.fixture(params=[64, 1 << 20], ids=["in a file", "in the buffer"])
def texts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Texts:
    monkeypatch.setattr(spool, "BUFFER", request.param)
    monkeypatch.setattr(Texts, "AHEAD", 7)
    return Texts.of(WORDS)


def test_it_reads_as_the_list_does(texts: Texts) -> None:
    assert list(texts) == WORDS
    assert texts == WORDS
    assert texts != WORDS[:-1]
    assert [texts[i] for i in (0, 50, 99, -1, -100)] == [WORDS[i] for i in (0, 50, 99, -1, -100)]
    for index in (100, -101):
        with pytest.raises(IndexError):
            texts[index]
    assert Texts.of(texts) is texts


def test_parts_of_parts(texts: Texts) -> None:
    places = [99, 3, 3, 50, *range(20, 40), 0]
    part = texts.take(places)
    assert list(part) == [WORDS[i] for i in places]
    assert list(part[2:20:3]) == [WORDS[i] for i in places[2:20:3]]
    assert part[-1] == WORDS[0]
    assert list(part.take([1, 0])) == [WORDS[3], WORDS[99]]
    assert list(texts) == WORDS
    assert not texts.take([])


def test_reading_between_additions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "BUFFER", 64)
    texts = Texts()
    for number, word in enumerate(WORDS):
        texts.append(word)
        assert texts[number // 2] == WORDS[number // 2]
    assert list(texts) == WORDS


def test_a_full_disk_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(spool, "BUFFER", 64)
    monkeypatch.setattr(spool.tempfile, "TemporaryFile", full)
    with pytest.raises(UserError, match=r"temporary folder .* \(No space left.*TMPDIR"):
        Texts.of(WORDS)

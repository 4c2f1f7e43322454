"""What a command that refuses its input says and leaves, and how to take the network away."""

import socket
from pathlib import Path

import pytest


def refused(finished, *words: str) -> None:
    """One line that holds all the words, and nothing on disk."""
    assert finished.status in (1, 2)
    lines = [line for line in finished.err.splitlines() if line.strip()]
    assert len(lines) == 1, finished.err
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0]
    assert not finished.out.strip()
    assert not Path("runs").exists()


def unplug(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network."""

    def unreachable(*_: object, **__: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket, "create_connection", unreachable)
    monkeypatch.setattr(socket, "getaddrinfo", unreachable)

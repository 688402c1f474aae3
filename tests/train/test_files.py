"""Files are whole or as they were, under names of their own, and one process's at a time."""

import contextlib
import errno
import json
import os
import resource
import shutil
import socket
from pathlib import Path

import pytest
import torch

from wuskern.train import checkpoint, files

DEAD = "0123456789abcdef"  # the mark of a process that is no more


@pytest.fixture
def path(tmp_path):
    found = tmp_path / "c.pt"
    found.write_text("before")
    return found


def written(path: Path, text: bytes = b"after") -> None:
    with files.replacing(path) as handle:
        handle.write(text)


@contextlib.contextmanager
def small_files():
    """As a full disk: no file can have more than 4 KiB. For a moment only: pytest's own output may go into a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**12, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_lies_beside_it_is_nobodys_temporary_file(path):
    """A file and a link, of the name that could be guessed and of one that cannot."""
    victim = path.with_name("victim")
    victim.write_text("precious")
    links = [path.with_name(name) for name in ("c.pt.tmp", ".c.pt.tmp")]
    for link in links:
        link.symlink_to(victim)
    written(path)
    assert path.read_text() == "after"
    assert victim.read_text() == "precious"
    assert sorted(path.parent.iterdir()) == sorted([path, victim, *links])


def test_even_a_name_that_was_guessed_is_not_written_through(path, monkeypatch):
    monkeypatch.setattr(files.secrets, "token_hex", lambda _: "0")
    victim, link = path.with_name("victim"), path.with_name(f".c.pt.{files.OWN}-0.tmp")
    victim.write_text("precious")
    link.symlink_to(victim)
    with pytest.raises(files.NotWritten, match=r"c.pt cannot be written: File exists"):
        written(path)
    assert (path.read_text(), victim.read_text(), link.is_symlink()) == ("before", "precious", True)


def test_a_link_is_replaced_and_not_what_it_leads_to(path):
    link = path.with_name("link")
    link.symlink_to(path)
    written(link)
    assert (path.read_text(), link.read_text(), link.is_symlink()) == ("before", "after", False)


def test_two_that_write_at_once_do_not_mix(path):
    with files.replacing(path) as first:
        first.write(b"fir")
        written(path, b"second")
        first.write(b"st")
    assert path.read_text() == "first"
    assert list(path.parent.iterdir()) == [path]


def test_anybody_may_read_it_whom_the_umask_lets(path):
    mask = os.umask(0o022)
    written(path.with_name("new"))
    os.umask(mask)
    assert path.with_name("new").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("save", [lambda p: written(p, bytes(2**13)), lambda p: checkpoint.save(p, weight=torch.zeros(2**15))])
def test_a_full_disk_is_named_and_nothing_is_lost(path, save):
    """torch.save raises an error of its own, which says nothing of the disk."""
    with pytest.raises(files.NotWritten, match=rf"c.pt cannot be written: {os.strerror(errno.EFBIG)}"), small_files():
        save(path)
    assert path.read_text() == "before"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("name", ["absent/c.pt", "folder"])
def test_a_place_that_takes_no_file_is_named(tmp_path, name):
    (tmp_path / "folder").mkdir()
    with pytest.raises(files.NotWritten, match=f"{name} cannot be written: "):
        written(tmp_path / name)
    assert [each.name for each in tmp_path.iterdir()] == ["folder"]


def test_another_error_stays_what_it_is(path):
    with pytest.raises(ZeroDivisionError), files.replacing(path) as handle:
        handle.write(bytes([1 // 0]))
    assert path.read_text() == "before"


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        with pytest.raises(OSError, match="it is no regular file"):
            files.opened(tmp_path / name)


def test_room_is_looked_for(tmp_path, monkeypatch):
    with small_files():
        files.check_room(tmp_path, 2**12, 2**12)
    with pytest.raises(OSError, match=os.strerror(errno.EFBIG)), small_files():
        files.check_room(tmp_path, 2**12 + 1, 0)
    free = shutil.disk_usage(tmp_path)._replace(free=2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    files.check_room(tmp_path, 0, 2**20)
    with pytest.raises(ValueError, match=r"expected 1.5 MiB free in .*, got 1.0"):
        files.check_room(tmp_path, 0, 3 * 2**19)
    assert not list(tmp_path.iterdir())


# ---- locks ----------------------------------------------------------------------------------------------------------


def test_who_has_a_file_is_named_until_it_is_let_go(path):
    with files.claimed(path):
        held = json.loads(files.lock_of(path).read_text())
        assert (held["pid"], held["host"]) == (os.getpid(), socket.gethostname())
        who = f"in use by process {os.getpid()} on {socket.gethostname()}"
        with pytest.raises(ValueError, match=f"expected a file that no other process writes, got {path}, {who}"):
            files.claimed(path).__enter__()
        with files.claimed(path.with_name("other")):
            pass
    with files.claimed(path):
        pass
    assert list(path.parent.iterdir()) == [path]


def test_a_lock_that_is_not_filled_in_yet_holds_too(path):
    with files.claimed(path):
        files.lock_of(path).write_text("")
        with pytest.raises(ValueError, match="in use by another process"):
            files.claimed(path).__enter__()


def test_the_lock_of_a_dead_process_is_taken_over_and_what_it_had_begun_is_removed(path):
    """Nothing else: not what another process is writing, nor a file that is only called alike."""
    lock = {"format": files.FORMAT, "pid": 1, "host": "elsewhere", "own": DEAD}
    files.lock_of(path).write_text(json.dumps(lock))
    begun = [path.with_name(f".{name}.{DEAD}-01234567.tmp") for name in ("c.pt", "results.json")]
    others = [path.with_name(name) for name in (f".c.pt.{DEAD[::-1]}-01234567.tmp", f"c.pt.{DEAD}-01234567.tmp")]
    for file in begun + others:
        file.write_text("half")
    with files.claimed(path):
        assert not any(file.exists() for file in begun)
    assert sorted(path.parent.iterdir()) == sorted([path, *others])


@pytest.mark.parametrize("own", ["*", None, [1], "0" * 15])
def test_a_mark_that_is_none_removes_nothing(path, own):
    files.lock_of(path).write_text(json.dumps({"format": files.FORMAT, "own": own}))
    beside = path.with_name(".c.pt.x-1.tmp")
    beside.write_text("precious")
    with files.claimed(path):
        pass
    assert beside.read_text() == "precious"


@pytest.mark.parametrize("text", ["precious", "[]", '{"format": "other"}', 10**5 * "["])
def test_a_file_of_the_locks_name_stays(path, text):
    files.lock_of(path).write_text(text)
    with pytest.raises(ValueError, match=r"expected no file of that name, or a lock of wuskern, got .*\.c\.pt\.lock"):
        files.claimed(path).__enter__()
    assert files.lock_of(path).read_text() == text


def test_a_link_or_a_pipe_of_the_locks_name_stays(path):
    files.lock_of(path).symlink_to(path)
    with pytest.raises(OSError, match="symbolic links"):
        files.claimed(path).__enter__()
    assert path.read_text() == "before"
    files.lock_of(path).unlink()
    os.mkfifo(files.lock_of(path))
    with pytest.raises(ValueError, match="expected no file of that name"):
        files.claimed(path).__enter__()
    assert files.lock_of(path).is_fifo()


def test_without_locks_on_the_file_system_it_goes_on(path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(files.fcntl, "flock", none)
    with files.claimed(path), files.claimed(path):
        written(path)
    assert list(path.parent.iterdir()) == [path]


def test_a_worker_does_not_keep_its_parents_locks(path, monkeypatch):
    """A forked process has the parent's locks under descriptors of its own, and closes them first of all."""
    with files.claimed(path):
        (handle,) = files._held
        monkeypatch.setattr(files, "_held", {os.dup(handle)})
        files._let_go_in_child()
        assert not files._held
    with files.claimed(path):
        pass

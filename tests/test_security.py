"""What a run touches: an audit hook sees every file, connection and program of `das3 adapt`, in its own process."""

import json
import os
import sys
import sysconfig
from pathlib import Path

import pytest

import das3
import worlds
from das3.cli import main
from das3.models import load_segmenter, save_segmenter

STEPS = [f"--{stage}.steps=1" for stage in ("align", "selftrain", "propagate")]
FOLDERS = ("open", "os.listdir", "os.scandir")
OUTSIDE = ("socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn")
INSTALLED = [
    *{Path(p).resolve() for p in (sys.prefix, sys.base_prefix, *sysconfig.get_paths().values())},
    Path(das3.__file__).parent,
    Path(__file__),  # a warning shows lines of it
]
SYSTEM = (
    "/proc",
    "/sys",
    "/dev/null",
    "/dev/urandom",
    "/dev/shm",
    "/etc/mime.types",
    "/usr/share/zoneinfo",
    "/usr/lib",
)


def watched(arguments, note):
    """Run a command in a fork of this process, and return [event, path or address] of all that it opened."""
    child = os.fork()
    if child == 0:
        status = 70
        try:
            seen = []
            sys.addaudithook(
                lambda event, given: seen.append((event, given)) if event in (*FOLDERS, *OUTSIDE) else None
            )
            status = main([str(a) for a in arguments])
            events = [(event, *_reads(event, given)) for event, given in list(seen)]
            note.write_text(json.dumps([e for e in events if len(e) > 1]))
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    return json.loads(note.read_text())


def _reads(event, given):
    """What is read; nothing for files that are only written, and for descriptors."""
    if event == "open":
        path, mode, flags = given
        only_written = isinstance(mode, str) and set(mode) & set("wax") and "+" not in mode
        if not isinstance(path, str | bytes | os.PathLike) or only_written or (mode is None and flags & os.O_WRONLY):
            return ()
        return (os.path.realpath(os.fsdecode(path)),)
    if event in FOLDERS:
        return (os.path.realpath(os.fsdecode(given[0] or ".")),) if not isinstance(given[0], int) else ()
    return (str(given),)


def foreign(events, *allowed):
    """Events that are no reading below one of these paths, of Python and its libraries, or of the system's files."""
    roots = [str(Path(root).resolve()) for root in (*allowed, *INSTALLED)] + list(SYSTEM)
    searched = {("os.listdir", os.path.realpath(path)) for path in sys.path if path}  # by imports; pytest adds folders
    return [
        e
        for e in events
        if e[0] in OUTSIDE
        or not (tuple(e) in searched or any(e[1] == root or e[1].startswith(f"{root}/") for root in roots))
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("place")
    for domain in ("source", "target"):
        worlds.write_world(root / domain, domain, count=3)
    segmenter = load_segmenter("das3:small", num_classes=3, model_args={"width": 8})
    save_segmenter(segmenter, root / "model")
    return root


def adapt(place, out, *more):
    """All stages, the guard and the report."""
    given = ("--model", place / "model", "--images", place / "target/images", "--out", out)
    return ["adapt", *given, *STEPS, "--device=cpu", "--quiet", *more]


def test_a_run_reads_the_model_the_target_images_and_its_folder_alone(place, tmp_path, monkeypatch):
    monkeypatch.chdir(place)
    events = watched(adapt(place, tmp_path / "run"), tmp_path / "note.json")
    assert foreign(events, place / "model", place / "target/images", tmp_path / "run") == []
    opened = {e[1] for e in events}
    assert str(place / "target/images/0.png") in opened  # the hook sees what is read
    assert any(path.startswith(str(tmp_path / "run/")) for path in opened)
    assert (tmp_path / "run/report.html").is_file()


def test_labels_are_read_where_they_are_named_and_only_there(place, tmp_path):
    """Else the test above would prove nothing."""
    labelled = ("--eval-images", place / "target/images", "--eval-labels", place / "target/labels")
    events = watched(adapt(place, tmp_path / "run", *labelled, "--stages=bn"), tmp_path / "note.json")
    allowed = (place / "model", place / "target/images", tmp_path / "run")
    found = {e[1] for e in foreign(events, *allowed)}
    assert str(place / "target/labels/0.png") in found
    assert foreign(events, *allowed, place / "target") == []


def test_predicting_reads_the_model_and_the_images_alone(place, tmp_path):
    given = ("--model", place / "model", "--images", place / "target/images", "--out", tmp_path / "out")
    events = watched(["predict", *given, "--device=cpu", "--quiet"], tmp_path / "note.json")
    assert foreign(events, place / "model", place / "target/images", tmp_path / "out") == []


def test_connections_and_programs_are_seen(tmp_path, monkeypatch):
    import socket
    import subprocess

    def stray(arguments):
        subprocess.run(["true"], check=True)
        with socket.socket() as one:
            one.connect_ex(("127.0.0.1", 9))
        (tmp_path / "x").write_text("x")
        (tmp_path / "x").read_text()
        return 0

    monkeypatch.setattr(sys.modules[__name__], "main", stray)
    kinds = {e[0] for e in foreign(watched([], tmp_path / "note.json"))}
    assert kinds == {"subprocess.Popen", "socket.connect", "open"}

"""What a user meets before anything runs: help, switches, misspelt options, completion, pipes and Ctrl-C."""

import os
import re
import resource
import shutil
import subprocess
import sys
from functools import cache

import pytest

from das3.cli import completion, main
from das3.cli.command import command_parser
from das3.cli.overview import COMMANDS, overview
from das3.recipe import recipe_names

completion_script = cache(completion.completion_script)


def printed(capsys, *arguments):
    """What a command prints before it exits with status 0."""
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    assert stopped.value.code == 0
    return capsys.readouterr().out


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_two_screens_and_begins_with_what_the_command_does(command, capsys):
    text = printed(capsys, command, "--help")
    lines = text.splitlines()
    assert len(lines) <= 80
    assert max(map(len, lines)) <= 100
    assert COMMANDS[command][1:] in text
    assert f"  {command}" in overview()


def test_help_all_shows_every_option_of_the_default_stages_and_names_the_others(capsys):
    first, everything = printed(capsys, "adapt", "--help"), printed(capsys, "adapt", "--help-all")
    for option in ("--model", "--images", "--out", "--recipe", "--eval-images", "--dry-run"):
        assert f"  {option} " in first or f"  {option}\n" in first
    for option in ("--ema-decay", "--weight-decay", "--align.gamma", "--propagate.easy-share", "--output-key"):
        assert option not in first
        assert everything.count(f"  {option} ") == 1
    assert "--cbst." not in everything
    assert "cbst" in everything
    parser, _ = command_parser("adapt")
    options = {o for a in parser._actions for o in a.option_strings if "." not in o and not o.endswith("+")}
    assert not [o for o in options - {"--print_config", "-h"} if not re.search(rf"{re.escape(o)}\b", everything)]


def test_help_of_one_stage_a_baseline_too(capsys):
    assert "--cbst.top-fraction" in printed(capsys, "adapt", "--help-stage", "cbst")
    assert main(["adapt", "--help-stage", "cbts"]) == 2
    assert "cbts" in capsys.readouterr().err


def test_a_misspelt_option_or_command_gets_a_suggestion(capsys):
    for given, meant in (
        (["adapt", "--align.setps", "3"], "--align.steps"),
        (["adapt", "--eval_images=x"], "--eval-images"),
        (["adpat"], "adapt"),
    ):
        assert main(given) == 2
        error = capsys.readouterr().err
        assert f"did you mean {meant}?" in error
        assert error.count("\n") == 1
    assert main(["adapt", "--xyzzy"]) == 2
    assert "`das3 adapt --help`" in capsys.readouterr().err


def test_switches_need_no_value():
    from das3.cli.arguments import prepare

    parser, _ = command_parser("predict")
    for given, flip, overlays in (
        (["--flip", "--overlays"], True, True),
        (["--flip", "false", "--overlays", "--tile", "8"], False, True),
        (["--flip=true"], True, False),
    ):
        parsed = parser.parse_args(prepare(parser, given))
        assert (parsed.flip, parsed.overlays) == (flip, overlays)


def test_every_recipe_has_a_title_of_one_whole_sentence(capsys):
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == recipe_names()
    assert all(line.endswith(".") and len(line) > 30 for line in lines), lines


def test_bash_completes_options_and_paths(tmp_path):
    (tmp_path / "script").write_text(completion_script("bash"))
    (tmp_path / "data").mkdir()
    code = """source ./script
        try() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); _shtab_das3; echo "${COMPREPLY[@]}"; }
        try das3 adapt --images da
        try das3 adapt --eval-im
        try das3 ada
        complete -p das3"""
    done = subprocess.run(["bash", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    path, option, command, registered = done.stdout.splitlines()
    assert path.strip() == "data"
    assert option.strip() == "--eval-images"
    assert command.strip() == "adapt"
    assert "-o default" in registered


def completed(shell, folder, *lines):
    """What a real, interactive shell makes of each line after a tab."""
    pexpect = pytest.importorskip("pexpect")
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    (folder / "script").write_text(completion_script(shell))
    if shell == "fish":  # it answers on the command line
        ask = (["fish", "-N", "-c", f"source ./script; complete -C '{line}'"] for line in lines)
        found = (subprocess.run(c, cwd=folder, capture_output=True, text=True, check=True).stdout for c in ask)
        return [[row.split("\t")[0] for row in text.splitlines()] for text in found]
    quiet = {"bash": ["--norc", "--noprofile", "-i"], "zsh": ["-f", "-i"]}[shell]
    where = {**os.environ, "PS1": "> ", "TERM": "dumb", "INPUTRC": "/dev/null", "COLUMNS": "200"}
    child = pexpect.spawn(shell, quiet, cwd=folder, encoding="utf8", timeout=30, env=where)
    begin = "autoload -Uz compinit; compinit -u -D; " if shell == "zsh" else ""
    then = "; compdef _shtab_das3 das3" if shell == "zsh" else ""
    child.sendline(f"{begin}source ./script{then}; das3() {{ echo \"<$*>\"; }}; echo REA''DY")
    child.expect("READY")
    answers = []
    for line in lines:
        child.send(f"{line}\t")
        child.sendline("")  # run by a function that says its arguments
        child.expect(r"<([^$]*?)>")
        answers.append(child.match[1].split()[-1:])
    child.close(force=True)
    return answers


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_paths_and_names(shell, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "mine.yaml").touch()
    lines = (
        *("das3 adapt --images da", "das3 adapt --recipe gta", "das3 adapt --recipe mi"),
        *("das3 recipes show syn", "das3 adapt --precision b", "das3 data check dark"),
    )
    answers = completed(shell, tmp_path, *lines)
    expected = ["data", "gta5-cityscapes", "mine.yaml", "synthia-cityscapes", "bf16", "dark-zurich"]
    assert [answer.rstrip("/") for (answer,) in answers] == expected


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh", "fish"])
def test_completion_has_no_marks_that_only_shtab_knows(shell):
    script = completion_script(shell)
    assert "file?" not in script
    assert "(type: " not in script
    if shell in ("zsh", "fish"):  # the others show no descriptions
        assert "publish an adapted model on the Hugging Face hub" in script
        assert "write what would be pushed to a folder, and push nothing" in script


def test_titles_of_recipes_are_whole_sentences(capsys):
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(recipe_names())
    assert [line for line in lines if not line.endswith(".")] == []


def test_a_suite_without_data_says_which_folder(capsys, tmp_path):
    assert main(["benchmark", "--suite", "camvid-dusk", "--out", str(tmp_path / "out")]) == 2
    assert "name the folder that holds camvid/ and idd-lite/ with --data" in capsys.readouterr().err
    assert main(["benchmark", "--suite=camvid-dusk", "--out", str(tmp_path / "out"), "--data", str(tmp_path)]) == 2
    assert f"no folder camvid in {tmp_path}" in capsys.readouterr().err


def test_a_misspelt_option_of_a_stage_gets_a_suggestion(capsys):
    assert main(["adapt", "--align.setps", "3"]) == 2
    assert "did you mean --align.steps?" in capsys.readouterr().err


def test_version_and_overview_need_no_torch():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for argument, word in (("--version", "das3 0"), ("--help", "train-source")):
        done = subprocess.run([sys.executable, "-m", "das3", argument], capture_output=True, text=True, check=True)
        assert word in done.stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime - before.ru_utime < 1, "half a second each"


def test_ctrl_c_while_torch_is_imported_is_one_line():
    code = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
class Interrupting:
    def find_spec(self, name, *_):
        if name == "torch":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
from das3.cli import main
sys.exit(main(["adapt", "--help"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 130
    assert done.stderr.strip().count("\n") == 0
    assert "interrupted" in done.stderr


@pytest.mark.parametrize(
    ("buffering", "arguments"),
    [
        ("-u", ["--help"]),
        ("-s", ["--help"]),
        ("-s", ["completion", "--help"]),
        pytest.param("-u", ["completion", "--help"], marks=pytest.mark.slow),
    ],
)
def test_a_reader_that_leaves_gives_no_traceback(buffering, arguments, monkeypatch):
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    code = f"from das3.cli import main; raise SystemExit(main({arguments}))"
    running = subprocess.Popen([sys.executable, buffering, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    running.stdout.close()
    assert running.stderr.read() == b""
    assert running.wait() in (0, 1)  # argparse itself ignores that --help has no reader


@pytest.mark.parametrize("command", COMMANDS)
def test_explanations_are_such_as_python_s_argparse_accepts(command):
    """From Python 3.14 on it fills them in when they are declared, so a single % stops the command."""
    parser, _ = command_parser(command)
    for action in parser._actions:
        assert "%" not in ((action.help or "") % {**vars(action), "prog": parser.prog}).replace(" %", ""), action.dest


def test_a_percent_sign_is_shown_as_one(capsys):
    assert "0.5 % of the image" in " ".join(printed(capsys, "evaluate", "--help").split())

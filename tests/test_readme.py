"""README and docs: CI and the tests run its two commands, and every command shown is one the tool takes."""

import json
import re
import shlex

import pytest
from conftest import REPOSITORY

from glue_bench import cli
from glue_bench.config import Config, load_config, plain
from glue_bench.tasks import TASKS

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
DOCS = {path.name: path.read_text(encoding="utf-8") for path in sorted((REPOSITORY / "docs").glob("*.md"))}
BLOCKS = re.findall(r"```(?:sh|bash)\n(.*?)```", "\n".join([README, *DOCS.values()]), flags=re.S)
LINES = [line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines() if line.strip()]
COMMANDS = [
    line.split("python -m glue_bench ", 1)[1].split(" && ")[0] for line in LINES if "python -m glue_bench " in line
]


def test_readme_opens_with_the_two_commands() -> None:
    first, second = (block.strip() for block in BLOCKS[:2])
    assert "\n" not in first and "\n" not in second, "each is one line to paste"
    for line in (first, second):
        assert "python3 -m venv" in line and "install" in line and "-c constraints.txt" in line
    assert first.endswith("python -m glue_bench run-all --config quick")
    assert second.endswith("python -m pytest")


def test_ci_installs_and_tests_as_the_readme_does() -> None:
    script = (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8")
    (install,) = re.findall(r"pip install .*", script)
    packages = shlex.split(install)[-1]
    assert packages in BLOCKS[1] and "python -m pytest" in script and "-m venv" in script


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_shown_is_one_the_tool_takes(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    arguments = shlex.split(command, comments=True)
    options = cli.build_parser().parse_args(arguments)
    if getattr(options, "config", None) and options.verb != "check" and not options.config.endswith(".toml"):
        settings = [text for text in getattr(options, "set", []) if "FILE" not in text and "FOLDER" not in text]
        load_config(options.config, settings)


def test_readme_names_what_is_there() -> None:
    for name in re.findall(r"`((?:glue_bench|configs|benchmarks|results)/[\w./-]+)`", README):
        assert (REPOSITORY / name).exists() or name.startswith("results/"), name
    for folder, text in ((REPOSITORY, README), *((REPOSITORY / "docs", text) for text in DOCS.values())):
        for link in re.findall(r"\]\(([\w./-]+\.md)\)", text):
            assert (folder / link).is_file(), link
    assert set(DOCS) == {"results.md", "speed.md"}
    assert len(TASKS) == 10


def _published_commands() -> list[str]:
    named = [(command, re.search(r"--run (\S+)", command)) for command in COMMANDS if command.startswith("run-all")]
    return [text for text, name in named if name and (REPOSITORY / "results/published" / name[1]).is_dir()]


def test_commands_of_published_runs_are_shown() -> None:
    shown = {re.search(r"--run (\S+)", command)[1] for command in _published_commands()}
    assert shown >= {"minilm", "minilm-short", "minilm-packed", "minilm-1m", "minilm-8m"}


@pytest.mark.parametrize("command", _published_commands())
def test_commands_of_published_runs_give_their_settings(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What README says to run has the settings that the published run has, wherever its files are."""
    monkeypatch.chdir(REPOSITORY)
    options = cli.build_parser().parse_args(shlex.split(command, comments=True))
    settings = [text for text in options.set if "FILE" not in text and "FOLDER" not in text]
    now = plain(load_config(options.config, settings))
    published = REPOSITORY / "results/published" / options.run / "config.json"
    then, defaults = json.loads(published.read_text(encoding="utf-8")), plain(Config())
    for section in ("pretrain", "distill", "finetune"):
        values = defaults[section] | then[section]  # settings that came later had their default's effect
        differ = {key for key, value in values.items() if now[section][key] != value}
        assert not differ - {"checkpoint_every"}, section
    assert now["corpus"]["batches"] == then["corpus"].get("batches", "packed")
    given = {text.split("=", 1)[0] for text in options.set}
    for section, key in (("data", "glue"), ("corpus", "text"), ("corpus", "heldout")):
        if "/" in str(then[section].get(key, "")):  # a file or folder of whoever ran it
            assert f"{section}.{key}" in given, "a reader's files are elsewhere"
    students = {one["name"]: one for one in now["students"]}
    for one in then["students"]:
        assert {key: students[one["name"]][key] for key in one} == one

"""The command line: the contract's verbs, flags and exit codes; one-line errors; nothing heavy before it is needed."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY
from synthetic_run import make_run, settings

from glue_bench import cli

CODES = """
import sys
from glue_bench.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as exit:
    code = exit.code
heavy = sorted({"torch", "transformers", "datasets", "numpy", "pandas", "pyarrow"} & set(sys.modules))
print("HEAVY", heavy, "CODE", code, file=sys.stderr)
"""


@pytest.mark.parametrize(
    "arguments", [["--help"], ["run-all", "--help"], ["plan", "--config", "quick"], ["list", "tasks"]]
)
def test_light_verbs_import_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-c", CODES, *arguments]
    if arguments[0] == "plan":
        command += ["--results", str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert "HEAVY [] CODE 0" in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "VERB"),
        (["fly"], "invalid choice"),
        (["run-all", "--config", "quik"], "did you mean 'quick'?"),
        (["run-all", "--config", "quick", "--run", "../x"], "cannot name a folder"),
        (["run-all", "--config", "quick", "--set", "distill.tokens=-1"], "distill.tokens: -1 is below"),
        (["run-all", "--config", "quick", "--set", "distill.tokens"], "expected key=value"),
        (["run-all", "--config", "quick", "--shard", "3/2"], "1 <= I <= N"),
        (["run-all", "--config", "quick", "--device", "tpu"], "invalid choice"),
        (["run-all", "--config", "quick", "--set", "data.glue=/nonexistent"], "no such folder"),
        (["run-all", "--config", "quick", "--set", "corpus.text=/nonexistent.txt"], "no such file"),
        (["run-all", "--config", "quick", "--set", "teacher.weights=./nonexistent"], "no such folder"),
        (["run-all", "--config", "quick", "--set", "teacher.weights=package:no_such_module/x"], "not installed"),
        (["check", "--run", "nothing-here"], "no run there"),
        (["check", "--run", "nothing-here", "--min-speedup", "nan"], "not a ratio"),
        (["check", "--run", "nothing-here", "--min-retention", "1.5"], "not between 0 and 1"),
        (["verify", "nothing-here"], "no run there"),
        (["compare", "a", "b"], "no run there"),
        (["submit"], "--model"),
        (["list", "planets"], "invalid choice"),
    ],
)
def test_bad_usage_is_exit_2_in_two_lines(arguments: list[str], expected: str, tmp_path: Path, capsys) -> None:
    results = ["--results", str(tmp_path / "results")] if arguments and arguments[0] != "fly" else []
    assert cli.main([*arguments, *results]) == 2
    captured = capsys.readouterr()
    assert expected in captured.err
    assert captured.err.count("\n") <= 2 and "Traceback" not in captured.err
    assert not list(tmp_path.rglob("record.json"))


@pytest.mark.parametrize("config", ["paper", "distilbert"])
def test_hub_configs_without_a_network_name_every_missing_part(config: str, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert cli.main(["run-all", "--config", config, "--results", str(tmp_path / "results")]) == 2
    message = capsys.readouterr().err
    for part in (
        "google-bert/bert-base-uncased",
        "distilbert/distilbert-base-uncased",
        "nyu-mll/glue",
        "--config quick",
    ):
        assert part in message
    assert ("wikimedia/wikipedia" in message) == (config == "paper")
    assert message.count("\n") == 2


def test_bare_run_all_picks_quick_without_an_accelerator(tmp_path, monkeypatch) -> None:
    from glue_bench import preflight

    monkeypatch.setattr(preflight, "gpu_names", lambda: ())
    monkeypatch.setattr(preflight, "hub_reachable", lambda: pytest.fail("the hub must not be asked"))
    assert preflight.choose_config(tmp_path) == ("quick", "no accelerator here")
    monkeypatch.setattr(preflight, "gpu_names", lambda: ("GPU",))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    for name in ("models--google-bert--bert-base-uncased", "datasets--nyu-mll--glue"):
        (tmp_path / "hub/hub" / name / "snapshots/1f").mkdir(parents=True)
        (tmp_path / "hub/hub" / name / "refs").mkdir()
        (tmp_path / "hub/hub" / name / "refs/main").write_text("1f", encoding="utf-8")
        (tmp_path / "hub/hub" / name / "snapshots/1f/README.md").touch()
    monkeypatch.setattr(preflight, "hub_reachable", lambda: False)
    assert preflight.choose_config(tmp_path)[0] == "quick", "no cache has all that paper needs: its text is streamed"
    (tmp_path / "begun/paper").mkdir(parents=True)
    (tmp_path / "begun/paper/config.json").touch()
    assert preflight.choose_config(tmp_path / "begun")[0] == "paper", "prepared with a hub, it goes on without"
    monkeypatch.setattr(preflight, "hub_reachable", lambda: True)
    assert preflight.choose_config(tmp_path)[0] == "paper"
    monkeypatch.setattr(preflight, "hub_reachable", lambda: False)
    assert preflight.choose_config(tmp_path)[0] == "quick"


def test_hub_is_never_asked_when_offline(monkeypatch) -> None:
    from glue_bench import preflight

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(preflight.urllib.request, "urlopen", lambda *_: pytest.fail("asked"))
    assert not preflight.hub_reachable()


def test_interrupt_is_130_with_how_to_go_on(monkeypatch, capsys) -> None:
    def interrupted(options) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_dispatch", interrupted)
    assert cli.main(["run-all", "--config", "quick"]) == 130
    assert "To go on: python -m glue_bench run-all --config quick" in capsys.readouterr().err


def test_unexpected_error_is_3_without_traceback(monkeypatch, capsys) -> None:
    def broken(options) -> int:
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(cli, "_dispatch", broken)
    assert cli.main(["plan"]) == 3
    assert capsys.readouterr().err == "glue_bench: RuntimeError: first line (--debug shows where)\n"
    assert cli.main(["plan", "--debug"]) == 3
    assert "Traceback" in capsys.readouterr().err


def test_plan_lists_every_step(tmp_path: Path, capsys) -> None:
    assert cli.main(["plan", "--config", "quick", "--results", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    for name in ("prepare/corpus", "pretrain/teacher", "distill/distil-2", "finetune/teacher/wnli/seed-0", "report"):
        assert name in text
    assert "pending" in text and "to do: about" in text
    assert not list(tmp_path.iterdir())


def test_list(capsys) -> None:
    assert cli.main(["list", "tasks"]) == 0
    assert "matthews_correlation" in capsys.readouterr().out
    assert cli.main(["list", "configs"]) == 0
    assert "quick: " in capsys.readouterr().out


def test_the_config_of_a_run_means_that_run(tmp_path: Path, capsys) -> None:
    """Not the one that its config is named after, whose trainings would be redone."""
    store = make_run(tmp_path, settings(), name="mine")
    config = str(store.root / "config.json")
    assert cli.main(["check", "--config", config, "--results", str(tmp_path)]) == 0
    assert f"{store.root}: gate passed" in capsys.readouterr().out
    options = cli.build_parser().parse_args(["run-all", "--config", config, "--results", str(tmp_path)])
    assert cli._config(options)[0].name != options.run == "mine"


@pytest.mark.parametrize("verb", [["check", "--run"], ["verify"], ["publish"]])
def test_a_published_run_never_stands_in_for_one_that_is_not_there(verb: list[str], tmp_path: Path, capsys) -> None:
    """A CI whose own run was not made must not be told that the reference run has passed."""
    make_run(tmp_path / "published", settings(), name="mine")
    results = ["--results", str(tmp_path)]
    assert cli.main([*verb, "mine", *results]) == 2
    assert "no run there; published/mine is one" in capsys.readouterr().err
    assert cli.main(["check", "--run", "published/mine", *results]) == 0

"""The house: layout, import direction and habits of the design, held by a test."""

import ast
import re
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

PACKAGE = REPOSITORY / "glue_bench"
MODULES = sorted(PACKAGE.rglob("*.py"))
SOURCES = sorted(
    path for folder in ("glue_bench", "tests", "benchmarks") for path in (REPOSITORY / folder).rglob("*.py")
)
STAGES = ("prepare", "pretrain", "distill", "finetune", "benchmark", "report", "check")
# Each may import only what stands before it; with inner packages last.
ORDER = (
    "errors",
    "interrupts",
    "paths",
    "model_folder",
    "tasks",
    "records",
    "typed",
    "config_checks",
    "config",
    "sources",
    "store",
    "locks",
    "inputs",
)
ORDER += ("machine", "plan", "work", "preflight", "pipeline", "executors", "estimate", "cli", "__main__")
FORBIDDEN_NAMES = {"utils", "util", "helpers", "common", "manager", "misc"}


def imports(path: Path, *, top_level: bool) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level else list(ast.walk(tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


def test_every_stage_is_verb_module_and_test() -> None:
    for stage in STAGES:
        assert (PACKAGE / "stages" / f"{stage}.py").is_file(), stage
        assert (REPOSITORY / "tests" / "stages" / f"test_{stage}.py").is_file(), stage


def test_the_way_in_needs_only_the_standard_library() -> None:
    for name in ORDER:
        for module in imports(PACKAGE / f"{name}.py", top_level=True):
            root = module.split(".")[0]
            assert root == "glue_bench" or root in sys.stdlib_module_names, f"{name} imports {module}"


def test_imports_go_one_way() -> None:
    for place, name in enumerate(ORDER):
        for module in imports(PACKAGE / f"{name}.py", top_level=True):
            if module.startswith("glue_bench."):
                assert module.split(".")[1] in ORDER[:place], f"{name} imports {module}"
    for inner in ("data", "learning", "reporting", "timing", "stages"):
        for path in (PACKAGE / inner).glob("*.py"):
            for module in imports(path, top_level=False):
                assert module not in ("glue_bench.cli", "glue_bench.pipeline"), f"{path.name} imports {module}"


def test_stages_never_import_each_other() -> None:
    for path in (PACKAGE / "stages").glob("*.py"):
        assert not any(module.startswith("glue_bench.stages") for module in imports(path, top_level=False)), path.name


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_modules_are_short_and_say_what_they_are(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)), "no docstring"
    assert len(text.splitlines()) <= 360, "too long"
    assert path.stem not in FORBIDDEN_NAMES


def test_no_pickle_and_no_remote_code() -> None:
    patterns = (
        r"\bimport pickle\b",
        r"torch\.save\(",
        r"torch\.load\(",
        r"trust_remote_code=True",
        r"\beval\(",
        r"\bexec\(",
    )
    for path in MODULES:
        text = path.read_text(encoding="utf-8")
        for pattern in patterns:
            hits = [line for line in text.splitlines() if re.search(pattern, line) and "model.eval(" not in line]
            hits = [line for line in hits if not re.search(r"\.\s*eval\(", line)]
            assert not hits, f"{path.name}: {hits}"


def test_the_repository_names_no_place_of_ours() -> None:
    pattern = re.compile("/wo" + "rk/|/ro" + r"ot/|\.lib" + "rary/")
    text_files = [*SOURCES, *REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md"), *REPOSITORY.glob("configs/*.toml")]
    text_files += [REPOSITORY / ".ci" / "run"]
    for path in text_files:
        assert not pattern.search(path.read_text(encoding="utf-8")), path


def test_defaults_live_in_config_only() -> None:
    """Stages read settings by key, so a default given to `settings.get` would be a second home for it."""
    for path in (PACKAGE / "stages").glob("*.py"):
        hits = re.findall(r"settings\.get\([^)]*,[^)]*\)", path.read_text(encoding="utf-8"))
        assert not hits, f"{path.name}: {hits}"

"""The installed wheel works outside the checkout: built, installed elsewhere, asked for its configs and a plan."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY


@pytest.mark.slow
def test_wheel_lists_and_plans_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77")
    pytest.importorskip("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    source = tmp_path / "source"
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=REPOSITORY, capture_output=True, text=True
    )
    for name in files.stdout.splitlines():
        if name.startswith(("glue_bench/", "configs/")) or name in ("pyproject.toml", "README.md", "LICENSE"):
            target = source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if (REPOSITORY / name).is_file():
                target.write_bytes((REPOSITORY / name).read_bytes())
    build = [*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path / "wheels"), str(source)]
    subprocess.run(build, check=True, timeout=300)
    (wheel,) = (tmp_path / "wheels").glob("*.whl")
    subprocess.run([*pip, "install", "-q", "--no-deps", "--target", str(tmp_path / "site"), str(wheel)], check=True)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PYTHONPATH": str(tmp_path / "site")}
    (tmp_path / "elsewhere").mkdir()
    for arguments in (["list", "configs"], ["list", "tasks"], ["plan", "--config", "quick"]):
        command = [sys.executable, "-m", "glue_bench", *arguments]
        done = subprocess.run(command, cwd=tmp_path / "elsewhere", env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "quick" in done.stdout or "CoLA" in done.stdout or "pretrain/teacher" in done.stdout

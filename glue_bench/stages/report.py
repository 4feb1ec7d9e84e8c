"""report: tables and figures from what the other steps left, the leaderboard, and weights that are not kept deleted."""

import shutil
from pathlib import Path
from typing import Any

from glue_bench.errors import UserError
from glue_bench.plan import Step
from glue_bench.reporting.build import analyse_and_build
from glue_bench.reporting.gate import BASELINE_FILE, read_summary
from glue_bench.reporting.leaderboard import update_leaderboard
from glue_bench.reporting.report_background import repeat_command
from glue_bench.reporting.run_folder import CONFIG_FILE, RunFolder, load_run
from glue_bench.reporting.scores import Scores
from glue_bench.reporting.written import listing, write_report
from glue_bench.store import Store, write_atomic


def run(step: Step, store: Store, device: str) -> dict[str, Any]:
    """Write the report into the run's folder, update the leaderboard, delete fine-tuned weights that are not kept.

    Returns headline (the finding), command (repeats the run) and files (name -> bytes, mtime_ns, sha256).
    """
    folder = load_run(store.root)
    _keep_baseline(folder)
    analysis, report = analyse_and_build(folder, command=repeat_command(folder))
    result = write_report(store.root, report)
    for name in (CONFIG_FILE, BASELINE_FILE):  # the report is no longer that of the run where these change
        if (store.root / name).is_file():
            result["files"][name] = listing(store.root / name)
    update_leaderboard(store.results)
    result["weights_deleted"] = prune_weights(folder, analysis.scores)
    return result


def _keep_baseline(folder: RunFolder) -> None:
    """Copy the baseline beside the tables: the verdict can then be repeated wherever the folder goes."""
    copy, given = folder.root / BASELINE_FILE, folder.config.check.baseline
    copy.unlink(missing_ok=True)
    if not given:
        return
    try:
        read_summary(Path(given))
    except UserError:
        return  # the gate fails and says why
    write_atomic(copy, Path(given).read_bytes())


def prune_weights(folder: RunFolder, scores: Scores) -> int:
    """Delete fine-tuned weights as finetune.keep_weights says: all, none, or all but the median seed's of each task.

    A row whose seeds are not all scored yet keeps everything. Returns how many folders were deleted.
    """
    keep = folder.config.finetune.keep_weights
    if keep == "all":
        return 0
    deleted = 0
    for model, tasks in scores.headlines.items():
        for task, spread in tasks.items():
            cells = [cell for cell in folder.cells if (cell.model, cell.task) == (model, task)]
            if len(cells) != spread.n_seeds:
                continue
            kept = spread.median_seed if keep == "median" else None
            for cell in cells:
                weights = folder.root / cell.step / "weights"
                if cell.seed != kept and weights.is_dir() and not weights.is_symlink():
                    shutil.rmtree(weights)
                    deleted += 1
    return deleted

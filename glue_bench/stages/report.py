"""report: tables and figures from what the other steps left, the leaderboard, and weights that are not kept deleted."""

import shutil
import sys
from pathlib import Path
from typing import Any

from glue_bench.errors import UserError
from glue_bench.inputs import read_summary
from glue_bench.plan import Step
from glue_bench.reporting.build import analyse_and_build
from glue_bench.reporting.gate import BASELINE_FILE
from glue_bench.reporting.leaderboard import update_leaderboard
from glue_bench.reporting.report_background import repeat_command
from glue_bench.reporting.run_folder import RunFolder, load_run
from glue_bench.reporting.scores import Scores
from glue_bench.reporting.written import listing, write_report
from glue_bench.store import CONFIG_FILE, Store, write_atomic


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
    result["weights_missing"] = missing_weights(folder, analysis.scores)
    if gone := result["weights_missing"]:
        more = f" and {len(gone) - 1} more" if len(gone) > 1 else ""
        print(
            f"report: finetune.keep_weights = {folder.config.finetune.keep_weights} keeps the weights of "
            f"{gone[0]}{more}, but they are gone; delete the folder of such a step and the next run trains it anew",
            file=sys.stderr,
        )
    return result


def _keep_baseline(folder: RunFolder) -> None:
    """Copy the baseline beside the tables: the verdict can then be repeated wherever the folder goes."""
    copy, given = folder.root / BASELINE_FILE, folder.config.check.baseline
    if given and Path(given).resolve() == copy.resolve():
        return
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
            there = [cell.seed for cell in cells if (folder.root / cell.step / "weights").is_dir()]
            kept = spread.closest_to_median(there) if keep == "median" else None
            for cell in cells:
                weights = folder.root / cell.step / "weights"
                if cell.seed != kept and weights.is_dir() and not weights.is_symlink():
                    shutil.rmtree(weights)
                    deleted += 1
    return deleted


def missing_weights(folder: RunFolder, scores: Scores) -> list[str]:
    """Fine-tunings whose weights finetune.keep_weights keeps, but which an earlier, lower value had deleted.

    Of the median seeds' only such where no other seed's weights are left to stand in.
    """
    keep = folder.config.finetune.keep_weights
    trained = [cell for cell in folder.cells if "weights" in folder.records.get(cell.step, {}).get("settings", {})]
    gone = [cell for cell in trained if not (folder.root / cell.step / "weights").is_dir()]
    if keep == "median":
        there = {(cell.model, cell.task) for cell in set(trained) - set(gone)}
        medians = {(m, t, one.median_seed) for m, tasks in scores.headlines.items() for t, one in tasks.items()}
        gone = [c for c in gone if (c.model, c.task, c.seed) in medians and (c.model, c.task) not in there]
    return [] if keep == "none" else [cell.step for cell in gone]

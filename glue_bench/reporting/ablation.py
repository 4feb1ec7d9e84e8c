"""Recognises a run whose students are one student with parts of the triple loss taken away: the paper's table 4."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from glue_bench.config import Config, distill_settings

LOSSES = {"weight_ce": "without L_ce", "weight_cos": "without L_cos", "weight_mlm": "without L_mlm"}
RANDOM = "random initialisation"


@dataclass(frozen=True)
class Ablation:
    """The full student's row, and row -> what was taken away, in the words of published_numbers.ABLATION."""

    full: str
    rows: Mapping[str, str]


def ablation_of(config: Config) -> Ablation | None:
    """The ablation among a config's students; None where there is none.

    The full student has all three losses and the teacher's layers; its ablated rows have the same layers and settings
    but for losses of weight 0, or a random initialisation.
    """
    distilled = {one.name: one for one in config.students if one.layers}
    settings = {name: asdict(distill_settings(config, one)) for name, one in distilled.items()}
    for full, reference in settings.items():
        trains = reference["tokens"] > 0 or reference["epochs"] > 0
        if not trains or reference["initialisation"] != "teacher" or any(not reference[loss] for loss in LOSSES):
            continue
        rows = {}
        for name, own in settings.items():
            if name != full and distilled[name].layers == distilled[full].layers:
                changed = {key for key, value in own.items() if value != reference[key]}
                taken = _taken_away(own, changed)
                if taken and changed <= {*LOSSES, "initialisation"}:
                    rows[name] = taken
        if rows:
            return Ablation(full, rows)
    return None


def _taken_away(own: Mapping[str, object], changed: set[str]) -> str:
    """What a row lacks, or nothing where it only weighs losses otherwise."""
    parts = [words for loss, words in LOSSES.items() if loss in changed and not own[loss]]
    if any(loss in changed and own[loss] for loss in LOSSES):
        return ""
    return ", ".join([*parts, *([RANDOM] if "initialisation" in changed else [])])

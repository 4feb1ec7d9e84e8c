"""Numbers that others published, to stand beside ours: facts with their source, never mixed into our statistics.

Scores are percent, as printed. Sources: Sanh et al., "DistilBERT", arXiv 1910.01108 v4 (tables 1, 3, 4, figure 1), and
the README of the authors' code, whose MNLI cell for BERT (84.7) agrees with the paper's own macro where the paper's
(86.7) does not.
"""

from dataclasses import dataclass

GLUE_DEV: dict[str, dict[str, float]] = {
    "ELMo": {
        "cola": 44.1,
        "sst2": 91.5,
        "mrpc": 76.6,
        "stsb": 70.4,
        "qqp": 86.2,
        "mnli": 68.6,
        "qnli": 71.1,
        "rte": 53.4,
        "wnli": 56.3,
    },
    "BERT-base-uncased": {
        "cola": 56.3,
        "sst2": 92.7,
        "mrpc": 88.6,
        "stsb": 89.0,
        "qqp": 89.6,
        "mnli": 84.7,
        "qnli": 91.8,
        "rte": 69.3,
        "wnli": 53.5,
    },
    "DistilBERT-base-uncased": {
        "cola": 51.3,
        "sst2": 91.3,
        "mrpc": 87.5,
        "stsb": 86.9,
        "qqp": 88.5,
        "mnli": 82.1,
        "qnli": 89.2,
        "rte": 59.9,
        "wnli": 56.3,
    },
}
TEACHER_ROW, STUDENT_ROW = "BERT-base-uncased", "DistilBERT-base-uncased"

# Change of the GLUE macro in points when one part is taken away (the paper's table 4).
ABLATION: dict[str, float] = {
    "without L_ce": -2.96,
    "without L_cos": -1.46,
    "without L_mlm": -0.31,
    "random initialisation": -3.69,
}

# A full pass over the STS-B dev set, batch 1, on an Intel Xeon E5-2690 v3 (the paper's table 3).
STSB_PASS_SECONDS = {"ELMo": 895.0, "BERT-base": 668.0, "DistilBERT": 410.0}
SPEEDUP = STSB_PASS_SECONDS["BERT-base"] / STSB_PASS_SECONDS["DistilBERT"]
SIZE_REDUCTION = 1 - 66_362_880 / 109_482_240

# Millions of parameters (the paper's figure 1; its ELMo bar says 94, its table 3 says 180).
PARAMETERS_MILLIONS: dict[str, float] = {
    "DistilBERT": 66,
    "ELMo": 94,
    "GPT": 110,
    "BERT-base": 110,
    "MT-DNN": 330,
    "BERT-large": 340,
    "RoBERTa": 355,
    "XLM": 665,
    "GPT-2": 1_500,
    "MegatronLM": 8_300,
}


@dataclass(frozen=True)
class ServerRow:
    """A later compression result on the GLUE test server: another macro (both MNLI sets, no WNLI)."""

    name: str
    average: float
    retention: float
    speedup: float | None  # None: not stated there


SERVER_ROWS = (
    ServerRow("TinyBERT6", 79.4, 99.9, 2.0),
    ServerRow("DistilBERT6", 76.8, 96.6, None),
    ServerRow("TinyBERT4", 77.0, 96.9, 9.4),
)


def macro(row: str, tasks: tuple[str, ...]) -> float:
    """Plain mean of a published row over the given tasks, in percent."""
    scores = GLUE_DEV[row]
    return sum(scores[task] for task in tasks) / len(tasks)

"""The GLUE tasks, one frozen row each: inputs, classes, metrics, splits and the names the GLUE server wants.

A new task is one row here. Row counts are the official ones; `data` in a summary says "full" only where they are met.
Source: Wang et al., "GLUE", ICLR 2019, and the column names of the hub data set nyu-mll/glue.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """One GLUE task: everything the harness must know about it."""

    name: str
    title: str
    inputs: tuple[str, ...]
    classes: tuple[str, ...]  # in the order of the data set's label integers; empty for regression
    metrics: tuple[str, ...]
    headline: tuple[str, ...]  # the score that enters the macro is the plain mean of these metrics
    train_rows: int
    dev_rows: tuple[int, ...]  # official sizes, in the order of dev_splits
    typical_tokens: int  # mean length of a training example in BERT's word pieces, special tokens included
    dev_splits: tuple[str, ...] = ("validation",)  # the first gives the headline
    test_splits: tuple[str, ...] = ("test",)
    submission_files: tuple[str, ...] = ()  # one per test split
    submission_by_name: bool = False  # the server wants class names rather than integers
    label_range: tuple[float, float] | None = None  # regression only
    predicted_by: str = ""  # a diagnostic set without training data, predicted by this task's model
    tsv_folder: str = ""  # folder of the original GLUE archive

    @property
    def is_regression(self) -> bool:
        """Whether the label is a real number."""
        return self.label_range is not None

    @property
    def num_outputs(self) -> int:
        """Width of the classification head."""
        return 1 if self.is_regression else len(self.classes)


_ENTAILMENT = ("entailment", "not_entailment")
_MNLI = ("entailment", "neutral", "contradiction")
_ACCURACY = ("accuracy",)
_ACCURACY_F1 = ("accuracy", "f1")

_ROWS = (
    Task(
        "cola",
        "CoLA",
        ("sentence",),
        ("unacceptable", "acceptable"),
        ("matthews_correlation",),
        ("matthews_correlation",),
        8_551,
        (1_043,),
        11,
        submission_files=("CoLA.tsv",),
        tsv_folder="CoLA",
    ),
    Task(
        "sst2",
        "SST-2",
        ("sentence",),
        ("negative", "positive"),
        _ACCURACY,
        _ACCURACY,
        67_349,
        (872,),
        14,
        submission_files=("SST-2.tsv",),
        tsv_folder="SST-2",
    ),
    Task(
        "mrpc",
        "MRPC",
        ("sentence1", "sentence2"),
        ("not_equivalent", "equivalent"),
        _ACCURACY_F1,
        _ACCURACY_F1,
        3_668,
        (408,),
        53,
        submission_files=("MRPC.tsv",),
        tsv_folder="MRPC",
    ),
    Task(
        "stsb",
        "STS-B",
        ("sentence1", "sentence2"),
        (),
        ("pearson", "spearman"),
        ("pearson", "spearman"),
        5_749,
        (1_500,),
        28,
        submission_files=("STS-B.tsv",),
        label_range=(0.0, 5.0),
        tsv_folder="STS-B",
    ),
    Task(
        "qqp",
        "QQP",
        ("question1", "question2"),
        ("not_duplicate", "duplicate"),
        _ACCURACY_F1,
        _ACCURACY_F1,
        363_846,
        (40_430,),
        31,
        submission_files=("QQP.tsv",),
        tsv_folder="QQP",
    ),
    Task(
        "mnli",
        "MNLI",
        ("premise", "hypothesis"),
        _MNLI,
        _ACCURACY,
        _ACCURACY,
        392_702,
        (9_815, 9_832),
        40,
        dev_splits=("validation_matched", "validation_mismatched"),
        test_splits=("test_matched", "test_mismatched"),
        submission_files=("MNLI-m.tsv", "MNLI-mm.tsv"),
        submission_by_name=True,
        tsv_folder="MNLI",
    ),
    Task(
        "qnli",
        "QNLI",
        ("question", "sentence"),
        _ENTAILMENT,
        _ACCURACY,
        _ACCURACY,
        104_743,
        (5_463,),
        50,
        submission_files=("QNLI.tsv",),
        submission_by_name=True,
        tsv_folder="QNLI",
    ),
    Task(
        "rte",
        "RTE",
        ("sentence1", "sentence2"),
        _ENTAILMENT,
        _ACCURACY,
        _ACCURACY,
        2_490,
        (277,),
        73,
        submission_files=("RTE.tsv",),
        submission_by_name=True,
        tsv_folder="RTE",
    ),
    Task(
        "wnli",
        "WNLI",
        ("sentence1", "sentence2"),
        ("not_entailment", "entailment"),
        _ACCURACY,
        _ACCURACY,
        635,
        (71,),
        37,
        submission_files=("WNLI.tsv",),
        tsv_folder="WNLI",
    ),
    Task(
        "ax",
        "AX",
        ("premise", "hypothesis"),
        _MNLI,
        ("matthews_correlation",),
        ("matthews_correlation",),
        0,
        (),
        40,
        dev_splits=(),
        submission_files=("AX.tsv",),
        submission_by_name=True,
        predicted_by="mnli",
        tsv_folder="diagnostic",
    ),
)

TASKS: dict[str, Task] = {task.name: task for task in _ROWS}
GLUE_NINE: tuple[str, ...] = tuple(task.name for task in _ROWS if not task.predicted_by)
WITHOUT_WNLI: tuple[str, ...] = tuple(name for name in GLUE_NINE if name != "wnli")

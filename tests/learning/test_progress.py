"""The progress line: every figure it promises, nothing where no one looks; the matrix rate is measured once."""

import pytest
import torch

from glue_bench.learning import progress
from glue_bench.learning.models import new_bert
from glue_bench.learning.progress import Progress, encoder_flops, head_flops, matrix_rate
from glue_bench.learning.students import build_student

ROW = {"tokens": 1_234_567.0, "seconds": 10.0, "loss": 6.5, "soft": 0.8, "mlm": 1.2, "cosine": 0.1}
ROW |= {"tokens_per_second": 1502.3}


def test_the_line_has_every_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps, time left, tokens, tokens/s, the share of what the device can do, the loss and its three terms."""
    monkeypatch.setattr(progress, "is_terminal", lambda: True)
    with Progress(40, 10, True, lambda: 2e11) as shown:
        shown.show(20, ROW, 5e11)  # 5e10 FLOP/s of 2e11
        line = str(shown.bar)
    assert line.startswith("20/40 steps, ")
    for part in (
        " left, 1.23M tokens, 1,502/s, 25% of 0.2 TFLOP/s, ",
        "loss 6.500 (soft 0.800, mlm 1.200, cosine 0.100)",
    ):
        assert part in line
    with Progress(40, 10, True, lambda: 2e11) as shown:
        shown.show(11, ROW | {"soft": 0.0, "cosine": 0.0}, 5e11)
        assert str(shown.bar).endswith("loss 6.500 (mlm 1.200)")


@pytest.mark.parametrize(("wanted", "terminal"), [(False, True), (True, False)])
def test_nothing_is_shown_or_measured_where_no_one_looks(
    wanted: bool, terminal: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A pipe, or a process that does not record."""
    monkeypatch.setattr(progress, "is_terminal", lambda: terminal)
    with Progress(4, 0, wanted, lambda: pytest.fail("measured")) as shown:  # type: ignore[arg-type, return-value]
        shown.show(1, ROW, 1.0)
    assert capfd.readouterr() == ("", "")


def test_the_rate_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plausible one, remembered by device, precision and threads."""
    monkeypatch.setattr(progress, "RATE_SIZE", 64)
    progress._measured_rate.cache_clear()
    rate = matrix_rate(torch.device("cpu"), "fp32")
    assert 1e6 < rate < 1e16
    assert matrix_rate(torch.device("cpu"), "fp32") == rate
    assert progress._measured_rate.cache_info().misses == 1
    progress._measured_rate.cache_clear()


def test_operations_counted_by_hand() -> None:
    """Two operations per weight and token, four per width, length and layer for attention; no embeddings."""
    model = new_bert(
        layers=3, hidden=8, heads=2, intermediate=12, max_positions=16, initializer_range=0.02, vocab_size=20, pad_id=0,
        seed=0,
    )  # fmt: skip
    layer = 4 * 8 * 8 + 2 * 8 * 12
    assert encoder_flops(model, 100, 16) == 100 * (2 * 3 * layer + 4 * 3 * 16 * 8)
    assert head_flops(model, 7) == 7 * 2 * (8 * 20 + 8 * 8)
    options = {"fold_token_types": False, "copy_head_transform": True, "random_init": False, "seed": 0}
    student = build_student(model, (0, 2), family="auto", **options)
    assert encoder_flops(student, 100, 16) == pytest.approx(encoder_flops(model, 100, 16) * 2 / 3)

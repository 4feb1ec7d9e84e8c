"""glue_bench: distil an encoder, fine-tune teacher and student on GLUE, time both, and say what was lost and won."""

__version__ = "0.1.0"

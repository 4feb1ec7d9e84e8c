"""Timing: the interleaved timer and its clocks, the backends it times, and the inputs they are timed on."""

"""The verbs of glue_bench, in order: prepare, pretrain, distill, finetune, benchmark, report, check."""

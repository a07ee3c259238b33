"""Tasks whose tokens are drawn, with known answers: they measure what a memory keeps."""

TASKS = {
    "recall": "recall of key-value pairs over any length, for models trained on that task",
    "mqar": "multi-query associative recall, for models trained on mqar",
    "passkey": "a number stated once in filler and asked for at the end",
    "needle": "the eight RULER-style needle tasks and variable tracking",
    "babilong": "bAbI facts scattered in text",
    "facts": "facts stated in a dialogue and asked for many turns later",
}
"""The tasks, which are the modules of this package with these names (`rmat.tasks.registry`), each in one
line."""

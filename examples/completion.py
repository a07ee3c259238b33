"""Code at a cursor, with a repository read first: once for all completions.

    python examples/completion.py starter FOLDER FILE

FILE is completed at its first line that ends with a colon, as if the body below were not written yet.
"""

import sys
from pathlib import Path

import rmat
from rmat.data.files import Skipped
from rmat.data.repository import context_files, context_texts, target_name
from rmat.generation.completion import complete, read_context


def main(model_folder: str, folder: str, file: str) -> None:
    model, tokenizer = rmat.load(model_folder)
    if tokenizer is None:
        raise SystemExit(f"{model_folder} holds a model without a tokenizer")
    root, target = Path(folder), Path(file)
    text = target.read_text(encoding="utf-8")
    head, colon, rest = text.partition(":\n")
    prefix, suffix = head + colon.rstrip("\n"), "\n" + rest

    # Everything around the file, the nearest last, into a state of constant size.
    skipped = Skipped()
    files = context_files(root, skipped, target=target, text=prefix, max_bytes=200_000)
    _, state = read_context(model, tokenizer, context_texts(files, skipped))
    print(f"read {len(files)} files, {int(state.position[0])} tokens, into {state.nbytes:,} bytes")

    # The state stays as it is: any number of completions go on from it.
    name = target_name(root, target)
    for mode in ("plain", "fim"):
        writing = complete(
            model, tokenizer, prefix, suffix, file_name=name, state=state, mode=mode, max_new_tokens=40
        )
        print(f"--- {mode}\n{''.join(writing)}")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit("usage: python examples/completion.py MODEL FOLDER FILE")
    main(*sys.argv[1:])

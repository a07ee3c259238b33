"""What a state is good for: read once, then branch, save and go on.

    python examples/states.py runs/demo

The state has one size however much was read, and going on from it costs the same however long ago the text
began.
"""

import sys
import tempfile
from pathlib import Path

import rmat


def main(folder: str) -> None:
    model, tokenizer = rmat.load(folder)
    if tokenizer is None:
        raise SystemExit(f"{folder} holds a model without a tokenizer")

    # Reading without writing: the prompt may be of any length, it is read piece by piece.
    source = Path(__file__).read_text(encoding="utf-8")
    reading = rmat.generate(model, tokenizer, source, max_new_tokens=0)
    for _ in reading:
        pass
    state = reading.state
    assert state is not None
    print(f"read {reading.prompt_tokens} tokens into a state of {state.nbytes:,} bytes")

    # Two texts go on from the same place; the state is a value, so neither sees the other.
    for seed in (1, 2):
        branch = rmat.generate(model, tokenizer, "\n\ndef ", max_new_tokens=40, seed=seed, state=state)
        print(f"--- branch {seed}\ndef {''.join(branch)}")

    # On disk and back: another process, another day.
    with tempfile.TemporaryDirectory() as place:
        state.save(Path(place) / "state.safetensors")
        restored = rmat.StreamState.load(Path(place) / "state.safetensors", model.config)
    again = rmat.generate(model, tokenizer, "\n\ndef ", max_new_tokens=40, seed=2, state=restored)
    print(f"--- branch 2 from disk\ndef {''.join(again)}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python examples/states.py MODEL")
    main(sys.argv[1])

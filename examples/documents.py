"""Documents read once, asked about often: each question is answered from a fork, and nothing is read again.

python examples/documents.py MODEL FILE...
"""

import sys
from pathlib import Path

import rmat
from rmat.data.extraction import read_file
from rmat.sessions.conversation import Conversation


def main(model_name: str, names: list[str]) -> None:
    model, tokenizer = rmat.load(model_name)
    if tokenizer is None:
        raise SystemExit(f"{model_name} holds a model without a tokenizer")
    card = Conversation(model, tokenizer)
    for name in names:
        tokens = card.read_document(read_file(Path(name)))
        print(f"{name}: {tokens} tokens")
    print(f"in a state of {card.session.state.nbytes:,} bytes")

    for question in ("What is this about?", "Who wrote it?", "What is this about?"):
        answer = "".join(card.fork().say(question, max_new_tokens=30, seed=1))
        print(f"--- {question}\n{answer}")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise SystemExit("usage: python examples/documents.py MODEL FILE...")
    main(sys.argv[1], sys.argv[2:])

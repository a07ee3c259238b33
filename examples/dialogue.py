"""A dialogue that is kept: said now, gone on with in another process, on another day.

python examples/dialogue.py MODEL
"""

import sys
import tempfile

import rmat
from rmat.sessions.conversation import Conversation
from rmat.sessions.store import SessionStore


def exchange(conversation: Conversation, text: str) -> None:
    print(f"user> {text}\nassistant> ", end="")
    for piece in conversation.say(text, max_new_tokens=30, seed=len(text)):
        print(piece, end="", flush=True)
    print()


def main(model_name: str) -> None:
    model, tokenizer = rmat.load(model_name)
    if tokenizer is None:
        raise SystemExit(f"{model_name} holds a model without a tokenizer")
    conversation = Conversation(model, tokenizer)
    conversation.add([("system", "You are at the counter of a library.")])
    exchange(conversation, "My name is Ada. I want a book about snow.")

    # What was said can be taken back, and a fork does not hear what is said here.
    fork = conversation.fork()
    exchange(conversation, "No, a book about rain.")
    print(f"forgot {conversation.forget()} exchange")

    with tempfile.TemporaryDirectory() as folder:
        store = SessionStore(folder)
        store.save("ada", conversation.session, model)
        later = Conversation(model, tokenizer, store.load("ada", model))
    # Bit for bit where it was: the answers are the same.
    for branch in (fork, later):
        exchange(branch, "What is my name?")
    session = later.session
    print(f"{session.tokens_read} tokens read and written, a state of {session.state.nbytes:,} bytes")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python examples/dialogue.py MODEL")
    main(sys.argv[1])

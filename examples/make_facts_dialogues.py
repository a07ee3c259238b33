"""Write dialogues in which a user states facts and asks for them later, as JSONL that a language model can be
trained on.

python examples/make_facts_dialogues.py facts/train.jsonl --count 2000 --filler talk --filler DIALOGUES
python examples/make_facts_dialogues.py facts/valid.jsonl --count 200 --split valid --filler talk --filler
DIALOGUES rmat train --data DIALOGUES --data facts data.weights='[0.8,0.2]' --out runs/mixed rmat eval facts
runs/mixed --filler DIALOGUES
"""

import argparse
import json
from pathlib import Path

import numpy as np

from rmat.tasks.facts import FactsTask

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("out", nargs="?", default="facts.jsonl", type=Path, help="file (default: facts.jsonl)")
parser.add_argument("--count", default=200, type=int, help="dialogues (default: 200)")
parser.add_argument("--turns", default=200, type=int, help="most turns of filler (default: 200)")
parser.add_argument(
    "--changes", default=0.2, type=float, help="share of facts corrected later (default: 0.2)"
)
parser.add_argument("--filler", action="append", help="talk, dialogues or text; repeatable (default: talk)")
parser.add_argument("--split", default="train", help="part of the filler's documents (default: train)")
parser.add_argument("--seed", default=0, type=int, help="seed of the random numbers (default: 0)")
args = parser.parse_args()

task = FactsTask(
    filler=tuple(args.filler or ["talk"]), split=args.split, changes=args.changes, questions="all"
)
args.out.parent.mkdir(parents=True, exist_ok=True)
turns = 0
with args.out.open("w", encoding="utf-8") as file:
    for number in range(args.count):
        random = np.random.default_rng([args.seed, number])
        # As many short dialogues as long ones: what is asked for stands at every distance.
        dialogue = task.dialogue(random, int(args.turns ** random.random()))
        turns += len(dialogue)
        file.write(json.dumps({"turns": [{"role": role, "text": text} for role, text in dialogue]}) + "\n")
print(f"{args.out}: {args.count:,} dialogues, {turns:,} turns")

"""The memory view of a session whose key heads keep slots of their own."""

import torch

from rmat.data.tokenizer import byte_tokenizer
from rmat.serving.memory_view import memory_view
from rmat.sessions.file import Session
from tests.makers.models import ADMITTED, make_model


def test_banks_of_key_heads_are_listed_one_behind_the_other() -> None:
    tokenizer = byte_tokenizer()
    fields = {
        **ADMITTED,
        "chunk_len": 6,
        "slots_per": "key_head",
        "n_slots": 5,
        "vocab_size": tokenizer.vocab_size,
    }
    model = make_model(fields, dtype=torch.float32)
    ids = tokenizer.encode("the quick brown fox jumps over the lazy dog")
    logits, state = model(torch.tensor([ids]))
    session = Session(state=state, next_logits=logits[0, -1], tokens_read=len(ids), tail=tuple(ids))
    view = memory_view(session, model.config, tokenizer)
    start = len(ids) - len(ids) % 6
    for number, layer in enumerate(view.layers):
        memory = state.layers[number].memory
        assert memory is not None
        assert layer.slots == 10 and layer.pushed == int(memory.pushed.sum())
        assert layer.openness == layer.pushed / 2 / len(ids)
        filled = memory.pushed[0].clamp(max=5).tolist()
        assert layer.filled == len(layer.held) == sum(filled) > 0
        expected = [
            (head * 5 + slot, int(memory.slots.age[0, slot, head]))
            for head in (0, 1)
            for slot in range(5 - filled[head], 5)
        ]
        assert [(each.slot, each.age) for each in layer.held] == expected
        for each in layer.held:
            assert each.token == tokenizer.decode([ids[start - each.age]])

"""Tokenizer and chat template of an imported model: those of its source, token by token."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from tokenizers import processors

from rmat.data.documents import dialogue_document, encode_documents, encode_lead, encode_turns
from rmat.data.template import ChatTemplate
from rmat.data.tokenizer import Tokenizer, load_tokenizer
from rmat.pretrained.source import open_source, with_chat
from tests.makers.pretrained import CHATML, LLAMA3, ODD_TEXTS, byte_level, source_folder

DIALOGUE = [
    ("user", "  Hello there,\nwho are you? "),
    ("assistant", "An assistant."),
    ("user", "What is the name?"),
    ("assistant", "\nNone.\n"),
    ("user", "ü 日本"),
]
LLAMA2 = (
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + message['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
QWEN3 = (
    "{%- for message in messages %}{%- set content = message.content %}"
    "{%- if message.role == 'assistant' and loop.last %}"
    "{{- '<|im_start|>assistant\n<think>\n\n</think>\n\n' + content + '<|im_end|>\n' }}"
    "{%- else %}{{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
"""A template that writes the last answer in another way than those before."""

TEMPLATES = {
    "chatml": (CHATML, "<|im_start|>", "<|im_end|>", False),
    "llama3": (LLAMA3, "<|begin_of_text|>", "<|eot_id|>", True),
    "llama2": (LLAMA2, "<s>", "</s>", True),
    "qwen3": (QWEN3, "<|endoftext|>", "<|im_end|>", False),
}


def pair(name: str) -> tuple[Tokenizer, Any]:
    """Our tokenizer and transformers' with the same vocabulary and template."""
    template, bos, eos, opens = TEMPLATES[name]
    backend = type(byte_level()).from_str(byte_level().to_str())
    backend.add_special_tokens([bos, eos, "<|start_header_id|>", "<|end_header_id|>"])
    if opens:
        start = (bos, backend.token_to_id(bos))
        backend.post_processor = processors.TemplateProcessing(single=[bos, "$A"], special_tokens=[start])
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=bos, eos_token=eos, chat_template=template
    )
    ours = with_chat(backend, template, {"bos_token": bos, "eos_token": eos}, [eos], opens, 2048)
    return ours, theirs


def as_messages(turns: Any) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in turns]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("count", [1, 3, 5])
def test_a_dialogue_is_what_the_source_reads(name: str, count: int) -> None:
    ours, theirs = pair(name)
    expected = theirs.apply_chat_template(
        as_messages(DIALOGUE[:count]), add_generation_prompt=True, return_dict=False
    )
    assert encode_turns(ours, DIALOGUE[:count], answer=True) == expected


@pytest.mark.parametrize("name", ["chatml", "llama3", "llama2"])
def test_turn_by_turn_it_is_the_same(name: str) -> None:
    """What a conversation reads, one question at a time, behind the answers that the model wrote."""
    ours, theirs = pair(name)
    read: list[int] = []
    for number in (0, 2, 4):
        before = "assistant" if read else "nothing"
        read += encode_turns(ours, DIALOGUE[number : number + 1], before, answer=True)
        if number < 4:
            answer = DIALOGUE[number + 1][1]
            read += ours.encode(f" {answer.strip()} " if name == "llama2" else answer.strip())
            read += [ours.special_id("turn_end"), *ours.closing]
    stripped = [(role, text.strip() if role == "assistant" else text) for role, text in DIALOGUE]
    expected = theirs.apply_chat_template(
        as_messages(stripped), add_generation_prompt=True, return_dict=False
    )
    assert read == expected


def test_an_answer_is_closed_as_the_template_closes_it() -> None:
    assert pair("chatml")[0].chat is not None
    closings = {name: tok.decode(tok.closing) for name in TEMPLATES for tok in [pair(name)[0]]}
    assert closings == {"chatml": "\n", "llama3": "", "llama2": "", "qwen3": "\n"}


def test_what_follows_a_text_has_no_second_beginning() -> None:
    """A document opens with the bos_token; the dialogue behind it does not open once more."""
    ours, _ = pair("llama3")
    fresh = encode_turns(ours, DIALOGUE[:1], "nothing", answer=True)
    behind = encode_turns(ours, DIALOGUE[:1], "opened", answer=True)
    assert fresh == [*ours.opening, *behind]


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_text_is_a_turn_before_its_question(name: str) -> None:
    """That of the system, or where the template has none the beginning of the user's: at the beginning and
    behind an exchange."""
    ours, _ = pair(name)
    special = ours.special_names

    def written(ids: list[int]) -> str:
        """Without blanks, which some tokenizers put before every part."""
        return "".join("".join(special.get(i) or ours.decode_bytes([i]).decode() for i in ids).split())

    def asked(text: str, question: str) -> list[Any]:
        return (
            [("user", f"{text}\n\n{question}")]
            if name == "llama2"
            else [("system", text), ("user", question)]
        )

    assert ours.chat is not None and ours.chat.text_role == ("user" if name == "llama2" else "system")
    text, question = "The sea is grey.", "What is grey?"
    read = [*encode_lead(ours, "nothing"), *ours.encode(text)]
    said = [*asked(text, question), ("assistant", "The sea.")]
    talk = [*read, *encode_turns(ours, [("user", question)], "text", answer=True)]
    assert written(talk) == written(encode_turns(ours, said[:-1], answer=True))
    talk += [*ours.encode("The sea."), ours.special_id("turn_end"), *ours.closing]
    talk += [*encode_lead(ours, "assistant"), *ours.encode("more")]
    talk += encode_turns(ours, [("user", "Why?")], "text", answer=True)
    assert written(talk) == written(encode_turns(ours, [*said, *asked("more", "Why?")], answer=True))
    assert encode_lead(ours, "text") == []
    answered = [*read, *encode_turns(ours, [("assistant", "Yes.")], "text")]
    assert written(answered) == written(
        encode_turns(ours, [(ours.chat.text_role, text), ("assistant", "Yes.")])
    )


def test_a_system_turn_stands_once() -> None:
    ours, _ = pair("chatml")
    together = encode_turns(ours, [("system", "Be kind."), ("user", "Hello")], answer=True)
    apart = encode_turns(ours, [("system", "Be kind.")])
    apart += encode_turns(ours, [("user", "Hello")], "system", answer=True)
    assert apart == together


@pytest.mark.parametrize("name", TEMPLATES)
def test_nobody_can_forge_a_token(name: str) -> None:
    ours, _ = pair(name)
    forged = "".join(ours.special_names.values())
    honest = encode_turns(ours, [("user", "x")], answer=True)
    ids = encode_turns(ours, [("user", forged)], answer=True)
    special = set(ours.special_names)
    assert [i for i in ids if i in special] == [i for i in honest if i in special]
    assert forged.strip() in ours.decode([i for i in ids if i not in special])
    assert not special & set(ours.encode(forged))


def test_a_template_may_refuse() -> None:
    ours, _ = pair("llama2")
    with pytest.raises(ValueError, match="template refuses these turns: roles must alternate"):
        encode_turns(ours, [("user", "a"), ("user", "b")])


def test_a_template_runs_in_a_sandbox() -> None:
    backend = byte_level()
    with pytest.raises(ValueError, match=r"refuses these turns: access to attribute '__class__'.*unsafe"):
        with_chat(backend, "{{ messages.__class__.__mro__ }}", {}, ["<|im_end|>"], False, 9)
    with pytest.raises(ValueError, match="no Jinja template"):
        with_chat(backend, "{% if %}", {}, ["<|im_end|>"], False, 9)


def test_without_a_template_there_is_no_chat(tmp_path: Path) -> None:
    tokenizer = open_source(source_folder(tmp_path, template=None)).tokenizer
    with pytest.raises(ValueError, match="no chat template"):
        encode_turns(tokenizer, [("user", "a")], answer=True)


def test_texts_are_what_the_source_reads(tmp_path: Path) -> None:
    folder = source_folder(tmp_path)
    ours, theirs = open_source(folder).tokenizer, transformers.AutoTokenizer.from_pretrained(folder)
    for text in ODD_TEXTS:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False), text
        assert ours.decode(ours.encode(text)) == text


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    for name in TEMPLATES:
        ours, _ = pair(name)
        ours.save(tmp_path / "tokenizer.json")
        again = load_tokenizer(tmp_path)
        assert again.fingerprint == ours.fingerprint
        assert again.chat == ours.chat
        assert encode_turns(again, DIALOGUE, answer=True) == encode_turns(ours, DIALOGUE, answer=True)
        assert again.vocab_size == ours.vocab_size, "no special tokens of ours are added"


def test_names_of_tokens_that_a_source_lacks() -> None:
    ours, _ = pair("chatml")
    assert ours.has_special("turn_end")
    assert not ours.has_special("user")
    with pytest.raises(ValueError, match="no token for 'fim_prefix'"):
        ours.special_id("fim_prefix")
    with pytest.raises(ValueError, match="no special token is named 'nonsense'"):
        ours.special_id("nonsense")


def test_every_end_of_the_source_ends_an_answer() -> None:
    backend = type(byte_level()).from_str(byte_level().to_str())
    tokenizer = with_chat(backend, CHATML, {}, ["<|endoftext|>", "<|im_end|>"], False, 9)
    assert tokenizer.special_id("turn_end") == backend.token_to_id("<|im_end|>")
    assert tokenizer.ends == {backend.token_to_id("<|endoftext|>")}
    with pytest.raises(ValueError, match="no eos_token"):
        with_chat(backend, CHATML, {}, [], False, 9)


def test_dialogues_of_a_corpus_have_the_sources_form() -> None:
    ours, theirs = pair("chatml")
    (document,) = encode_documents(ours, [dialogue_document("x", DIALOGUE)])
    expected = theirs.apply_chat_template(as_messages(DIALOGUE), return_dict=False)
    assert np.array_equal(document.tokens, [ours.special_id("document"), *expected])


def test_a_template_is_read_from_its_dict() -> None:
    chat = pair("llama3")[0].chat
    assert chat is not None
    assert ChatTemplate.from_dict(chat.to_dict()) == chat

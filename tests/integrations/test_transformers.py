"""Our models as models of transformers: forward, generate, loss, training, folders. One process, because importing
transformers takes seconds."""

import copy
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    DataCollatorWithFlattening,
    DynamicCache,
    StoppingCriteria,
    StoppingCriteriaList,
    Trainer,
    TrainingArguments,
    pipeline,
)
from transformers.generation.streamers import BaseStreamer

import rmat
from rmat.cli.main import main
from rmat.data.documents import encode_turns
from rmat.integrations.hf import RmatCache, RmatConfig, RmatForCausalLM
from rmat.integrations.hf.folder import convert
from rmat.integrations.hf.modeling import CACHE
from rmat.integrations.hf.tokenizer import to_transformers
from rmat.model import LanguageModel, ModelConfig
from tests.makers.models import TINY, make_model, make_tokens
from tests.makers.pretrained import ODD_TEXTS, source_folder

CASES = ("recommended", "paper", "admitted_weakest_with_sinks", "local", "select_none_token")
"""Written from the input and from the output, of local keys, without a memory, with a head of its own."""

PAD = 28
"""Not among the tokens of `random_tokens`: where no mask is given, `generate` takes it for padding."""


def random_tokens(rows: int, length: int, seed: int = 0) -> Tensor:
    return make_tokens(rows, length, vocab_size=PAD, seed=seed)


def wrapped(case: str = "recommended", dtype: torch.dtype = torch.float64, **fields: Any) -> RmatForCausalLM:
    model = RmatForCausalLM.wrap(make_model(case, dtype=dtype, **fields))
    model.generation_config.pad_token_id = PAD
    return model


def single(model: RmatForCausalLM, row: Sequence[int], **options: Any) -> list[int]:
    """What `generate` writes behind one row alone."""
    out = model.generate(torch.tensor([row]), **options)
    return out[0, len(row) :].tolist()


def padded(rows: Sequence[Sequence[int]], side: str) -> dict[str, Tensor]:
    width = max(map(len, rows))
    ids, mask = torch.full((len(rows), width), PAD), torch.zeros(len(rows), width, dtype=torch.int64)
    for index, row in enumerate(rows):
        place = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[index, place], mask[index, place] = torch.tensor(row), 1
    return {"input_ids": ids, "attention_mask": mask}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of ours with a tokenizer."""
    path = tmp_path_factory.mktemp("ours") / "model"
    tokenizer = rmat.load_tokenizer("bytes")
    make_model("recommended", vocab_size=tokenizer.vocab_size, dtype=torch.float32).save(path, tokenizer)
    return path


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Path:
    """The same for transformers."""
    out = folder.parent / "theirs"
    convert(folder, out)
    return out


# Forward


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_the_model(case: str) -> None:
    ours, tokens = make_model(case), random_tokens(2, 40)
    model = RmatForCausalLM.wrap(ours)
    with torch.no_grad():
        expected, state = ours(tokens)
        out = model(tokens)
        assert torch.equal(out.logits, expected)
        assert torch.equal(out[CACHE].state.position, state.position)
        torch.testing.assert_close(model(tokens, logits_to_keep=3).logits, expected[:, -3:])
        two = model(tokens, logits_to_keep=torch.tensor([1, 7])).logits
        torch.testing.assert_close(two, expected[:, [1, 7]])
        vectors = ours.embedding(tokens)
        assert torch.equal(model(inputs_embeds=vectors).logits, expected)
        parts = model(tokens[:, :17])
        parts = model(tokens[:, 17:], past_key_values=parts[CACHE])
        torch.testing.assert_close(parts.logits, expected[:, 17:], rtol=1e-9, atol=1e-9)
        assert model(tokens, return_dict=False)[0].equal(expected)
        assert model(tokens, use_cache=False).get(CACHE) is None


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("case", CASES)
def test_padded_rows_are_rows_alone(case: str, side: str) -> None:
    model, rows = wrapped(case), [random_tokens(1, n, seed=n)[0].tolist() for n in (23, 4, 13)]
    batch = padded(rows, side)
    with torch.no_grad():
        out = model(**batch)
        for index, row in enumerate(rows):
            alone = model(torch.tensor([row])).logits[0]
            torch.testing.assert_close(out.logits[index][batch["attention_mask"][index] == 1], alone)
            torch.testing.assert_close(
                out.logits[index, -1], alone[-1]
            )  # behind padding: after the last token


def test_vectors_between_the_blocks() -> None:
    model, rows = wrapped("admitted_weakest_with_sinks"), [random_tokens(1, n)[0].tolist() for n in (15, 9)]
    batch = padded(rows, "left")
    with torch.no_grad():
        layers = model(**batch, output_hidden_states=True).hidden_states
        assert len(layers) == 1 + TINY["n_layers"]
        for index, row in enumerate(rows):
            alone = model(torch.tensor([row]), output_hidden_states=True).hidden_states
            torch.testing.assert_close(alone[0], model.model.embedding(torch.tensor([row])))
            for layer, expected in zip(layers, alone, strict=True):
                torch.testing.assert_close(layer[index][batch["attention_mask"][index] == 1], expected[0])
        by_segments = wrapped("paper")
        tokens = random_tokens(2, 20)
        last = by_segments(tokens, output_hidden_states=True).hidden_states[-1]
        by_segments.config.output_hidden_states = True
        assert len(by_segments(tokens).hidden_states) == 1 + TINY["n_layers"]
        by_segments.config.output_hidden_states = False
        weight = by_segments.model.embedding.weight
        torch.testing.assert_close(last @ weight.T, by_segments(tokens).logits)
        with pytest.raises(ValueError, match="rows of several lengths"):
            by_segments(**batch, output_hidden_states=True)


def test_what_cannot_be_honoured_is_refused() -> None:
    model, tokens = wrapped(), random_tokens(1, 5)
    for options, words in (
        ({"output_attentions": True}, "output_attentions is not possible"),
        ({"attention_mask": torch.ones(1, 1, 5, 5)}, "attention_mask has shape"),
        ({"attention_mask": torch.ones(1, 4)}, "attention_mask has shape"),
        ({"cache": DynamicCache()}, "the cache is a DynamicCache"),
        ({"inputs_embeds": torch.zeros(1, 5, 24)}, "either input_ids or inputs_embeds"),
        ({"cu_seq_lens_q": torch.tensor([0, 2, 5])}, "need position_ids"),
    ):
        with pytest.raises(ValueError, match=words):
            model(tokens, **options)
    cache = model(tokens)[CACHE]
    with pytest.raises(ValueError, match="crop is not possible"):
        cache.crop(-1)
    with pytest.raises(ValueError, match="rows"):
        model(random_tokens(2, 3), cache=cache)


# Generate


def test_a_batch_padded_on_either_side_writes_what_its_rows_write_alone() -> None:
    options = {"max_new_tokens": 12, "do_sample": False}
    rows = [random_tokens(1, n, seed=n)[0].tolist() for n in (31, 5, 18)]
    for case in ("recommended", "paper", "admitted_weakest_with_sinks"):
        model = wrapped(case)
        expected = [single(model, row, **options) for row in rows]
        tokens, state = torch.tensor([rows[0]]), None
        written = []
        with torch.no_grad():
            for _ in range(12):  # by our own means
                logits, state = model.model(tokens, state)
                tokens = logits[:, -1:].argmax(-1)
                written.append(int(tokens))
        assert written == expected[0]
        for side in ("left", "right"):
            for chunk in (None, 7):
                out = model.generate(**padded(rows, side), **options, prefill_chunk_size=chunk)
                assert out[:, 31:].tolist() == expected, (case, side, chunk)


def test_ways_of_choosing_need_no_cache_to_come_out_the_same() -> None:
    model, tokens = wrapped(), random_tokens(2, 40)
    for options in (
        {"num_beams": 4},
        {"num_beams": 3, "num_return_sequences": 3, "length_penalty": 0.5},
        {"do_sample": True, "num_return_sequences": 3, "temperature": 0.8},
        {"do_sample": True, "num_beams": 2},
        {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
    ):
        texts = []
        for use_cache in (True, False):
            torch.manual_seed(3)
            texts.append(model.generate(tokens, max_new_tokens=9, use_cache=use_cache, **options))
        assert torch.equal(*texts), options
        assert texts[0].shape[0] == 2 * options.get("num_return_sequences", 1)


def test_vectors_and_nothing_can_be_gone_on_from() -> None:
    model, tokens = wrapped(), random_tokens(2, 20)
    expected = model.generate(tokens, max_new_tokens=7, cache_implementation="dynamic")[:, 20:]
    vectors = model.get_input_embeddings()(tokens)
    assert torch.equal(model.generate(inputs_embeds=vectors, max_new_tokens=7), expected)
    model.generation_config.bos_token_id = 3
    assert model.generate(max_new_tokens=4)[0, 1:].tolist() == single(model, [3], max_new_tokens=4)


@pytest.mark.parametrize("more", [1, 9])
def test_a_returned_cache_goes_on(more: int) -> None:
    model, tokens = wrapped(), random_tokens(2, 20)
    first = model.generate(tokens, max_new_tokens=5, return_dict_in_generate=True)
    held = first[CACHE]
    assert held.get_seq_length() == 24  # what was written last has not been read
    longer = torch.cat([first.sequences, random_tokens(2, more, seed=7)], dim=1)
    expected = model.generate(longer, max_new_tokens=6)
    fork = copy.deepcopy(held)
    for cache in (held, fork):
        for name in {CACHE, "past_key_values"}:
            assert torch.equal(
                model.generate(longer, max_new_tokens=6, **{name: copy.deepcopy(cache)}), expected
            )
    assert torch.equal(model.generate(longer, max_new_tokens=6, **{CACHE: held}), expected)
    assert fork.get_seq_length() == 24


def test_a_state_of_ours_goes_on() -> None:
    model, tokens = wrapped(), random_tokens(1, 50)
    _, state = model.model(tokens[:, :40])
    out = model.generate(tokens[:, 40:], max_new_tokens=6, **{CACHE: RmatCache(state)})
    assert out[0, 10:].tolist() == single(model, tokens[0].tolist(), max_new_tokens=6)


def test_rows_of_a_cache() -> None:
    model, tokens = wrapped(), random_tokens(3, 14)
    with torch.no_grad():
        cache = model(tokens)[CACHE]
        logits = model.model(tokens[:, :1], cache.state)[0]
        cache.reorder_cache(torch.tensor([2, 2, 0]))
        cache.batch_select_indices(torch.tensor([0, 2]))
        cache.batch_repeat_interleave(2)
        assert cache.batch_size == 4
        rows = [2, 2, 0, 0]
        torch.testing.assert_close(model(tokens[rows, :1], cache=cache).logits, logits[rows])
        cache.reset()
        assert (cache.get_seq_length(), cache.batch_size) == (0, -1)
        torch.testing.assert_close(model(tokens, cache=cache).logits, model(tokens).logits)


def test_streamers_and_stopping() -> None:
    class Heard(BaseStreamer):  # type: ignore[misc]
        def __init__(self) -> None:
            self.ids: list[int] = []

        def put(self, value: Tensor) -> None:
            self.ids += value.flatten().tolist()

        def end(self) -> None:
            self.ids.append(-1)

    class Three(StoppingCriteria):  # type: ignore[misc]
        def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
            return torch.full((len(input_ids),), input_ids.shape[1] >= 13)

    model, tokens, heard = wrapped(), random_tokens(1, 10), Heard()
    out = model.generate(
        tokens, max_new_tokens=9, streamer=heard, stopping_criteria=StoppingCriteriaList([Three()])
    )
    assert out.shape == (1, 13)
    assert heard.ids == [*out[0].tolist(), -1]
    end = int(out[0, 11])
    assert model.generate(tokens, max_new_tokens=9, eos_token_id=end)[0, -1] == end


def test_assistants_and_other_caches_are_refused() -> None:
    model, tokens = wrapped(), random_tokens(1, 6)
    with pytest.raises(ValueError, match="assisted generation is not supported with stateful models"):
        model.generate(tokens, assistant_model=wrapped(), max_new_tokens=3)
    with pytest.raises(ValueError, match="assisted generation"):
        model.generate(tokens, prompt_lookup_num_tokens=3, max_new_tokens=3)
    with pytest.raises(ValueError, match="cache_implementation='static' is not possible"):
        model.generate(tokens, cache_implementation="static", max_new_tokens=3)


# Loss and training


def test_the_loss_counts_what_was_predicted() -> None:
    model, rows = wrapped(), [random_tokens(1, n, seed=n)[0].tolist() for n in (20, 7)]
    sums = []
    for row in rows:
        logits, _ = model.model(torch.tensor([row]))
        nats = torch.nn.functional.cross_entropy(
            logits[0, :-1].float(), torch.tensor(row[1:]), reduction="sum"
        )
        sums.append(float(nats))
    for side in ("left", "right"):
        batch = padded(rows, side)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        mean = model(**batch, labels=labels).loss
        assert float(mean) == pytest.approx(sum(sums) / (19 + 6), rel=1e-5)
        shared = model(**batch, labels=labels, num_items_in_batch=torch.tensor(100)).loss
        assert float(shared) == pytest.approx(sum(sums) / 100, rel=1e-5)


def test_several_documents_in_a_row() -> None:
    model, rows = wrapped(), [random_tokens(1, n, seed=n)[0].tolist() for n in (20, 7, 12)]
    batch = DataCollatorWithFlattening()([{"input_ids": row} for row in rows])
    logits = model(**{name: batch[name] for name in ("input_ids", "position_ids")}).logits[0]
    for row, part in zip(rows, logits.split([20, 7, 12]), strict=True):
        torch.testing.assert_close(part, model(torch.tensor([row])).logits[0])


@pytest.mark.parametrize("case", ["recommended", "paper"])
def test_activations_are_computed_again(case: str) -> None:
    model, tokens = wrapped(case, n_layers=4).train(), random_tokens(2, 90)

    def run() -> tuple[Tensor, dict[str, Tensor], int]:
        kept: dict[int, int] = {}

        def pack(x: Tensor) -> Tensor:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        model.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            loss = model(tokens, labels=tokens).loss
        size = sum(kept.values())
        loss.backward()
        return (
            loss,
            {name: x.grad.clone() for name, x in model.named_parameters() if x.grad is not None},
            size,
        )

    loss, gradients, size = run()
    model.gradient_checkpointing_enable()
    again, gradients_again, less = run()
    assert float(again) == float(loss)
    assert gradients.keys() == gradients_again.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradients_again[name], gradient, rtol=1e-9, atol=1e-12)
    assert less < size / 2
    model.gradient_checkpointing_disable()
    assert run()[2] > 2 * less


def test_the_trainer_evaluates_and_resumes(tmp_path: Path) -> None:
    tokenizer = to_transformers(rmat.load_tokenizer("bytes"))
    data = [tokenizer(text) for text in ("one two three", "four", "five six", "seven eight nine") * 3]

    def trained(out: str, steps: int, resume: str | None = None) -> Trainer:
        torch.manual_seed(0)
        trainer = Trainer(
            RmatForCausalLM(RmatConfig(**{**TINY, "vocab_size": len(tokenizer), "dropout": 0.1})),
            TrainingArguments(
                output_dir=str(tmp_path / out),
                use_cpu=True,
                report_to="none",
                disable_tqdm=True,
                max_steps=steps,
                lr_scheduler_type="constant",
                learning_rate=1e-2,
                per_device_train_batch_size=2,
                gradient_accumulation_steps=2,
                eval_strategy="steps",
                eval_steps=4,
                save_steps=4,
                logging_steps=4,
            ),
            train_dataset=data,
            eval_dataset=data[:3],
            data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
            processing_class=tokenizer,
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole = trained("whole", 8)
    losses = [entry["eval_loss"] for entry in whole.state.log_history if "eval_loss" in entry]
    assert len(losses) == 2
    assert losses[1] < losses[0] < 6
    trained("cut", 4)
    resumed = trained("cut", 8, str(tmp_path / "cut" / "checkpoint-4"))
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], value, msg=name)
    last = tmp_path / "whole" / "checkpoint-8"
    convert(last, tmp_path / "ours")
    model, back = rmat.load(tmp_path / "ours")
    assert back is not None
    assert back.fingerprint == rmat.load_tokenizer("bytes").fingerprint
    tokens = torch.tensor([data[0]["input_ids"]])
    with torch.no_grad():
        assert torch.equal(model(tokens)[0], whole.model.eval()(tokens).logits)


@pytest.mark.slow
def test_the_trainer_in_two_processes(tmp_path: Path) -> None:
    """The same losses as in one, and with activations computed again."""
    script = tmp_path / "train.py"
    script.write_text(
        f"""
import os
import torch
from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments
import rmat
from rmat.integrations.hf import RmatConfig, RmatForCausalLM
from rmat.integrations.hf.tokenizer import to_transformers

tokenizer = to_transformers(rmat.load_tokenizer("bytes"))
data = [tokenizer(text) for text in ("one two three", "four", "five six", "seven eight nine") * 4]
world = int(os.environ.get("WORLD_SIZE", 1))
torch.manual_seed(0)
trainer = Trainer(
    RmatForCausalLM(RmatConfig(**{ {**TINY, "vocab_size": 265}!r})),
    TrainingArguments(
        output_dir={str(tmp_path / "out")!r}, use_cpu=True, report_to="none", disable_tqdm=True, max_steps=4,
        per_device_train_batch_size=4 // world, lr_scheduler_type="constant", learning_rate=1e-3,
        save_strategy="no", logging_steps=1, ddp_backend="gloo" if world > 1 else None,
        gradient_checkpointing="CHECKPOINTING" in os.environ,
    ),
    train_dataset=data,
    data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
)
trainer.train()
if trainer.is_world_process_zero():
    print("losses", *(entry["loss"] for entry in trainer.state.log_history if "loss" in entry))
"""
    )
    found = []
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for options, more in (([], {}), (torchrun, {}), (torchrun, {"CHECKPOINTING": "1"})):
        done = subprocess.run(
            [sys.executable, *options, str(script)],
            capture_output=True,
            text=True,
            timeout=200,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **more},
        )
        assert done.returncode == 0, done.stderr
        line = next(line for line in done.stdout.splitlines() if line.startswith("losses"))
        found.append([float(loss) for loss in line.split()[1:]])
    assert len(found[0]) == 4
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    assert found[2] == pytest.approx(found[0], rel=1e-4)


def test_adapters_on_our_maps(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed: it comes with the extra dev")
    torch.manual_seed(0)
    model, tokens = wrapped("recommended", torch.float32), random_tokens(2, 30)
    with torch.no_grad():
        before = model(tokens).logits
    config = peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    tuned = peft.get_peft_model(model, config).eval()
    loss = tuned(tokens, labels=tokens).loss
    loss.backward()
    learned = {name: x for name, x in tuned.named_parameters() if x.requires_grad}
    for part in ("query", "key", "value", "output", "up", "down", "score"):
        assert any(f".{part}.lora_A" in name for name in learned), part
    for name, parameter in learned.items():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    with torch.no_grad():
        adapted = tuned(tokens).logits
        assert not torch.allclose(adapted, before, atol=1e-3)
        tuned.save_pretrained(tmp_path)
        merged = tuned.merge_and_unload()
        torch.testing.assert_close(merged(tokens).logits, adapted, rtol=1e-4, atol=1e-4)
        fresh = peft.PeftModel.from_pretrained(wrapped("recommended", torch.float32), tmp_path)
        torch.testing.assert_close(fresh(tokens).logits, adapted, rtol=1e-4, atol=1e-4)


# Configuration and weights


def test_a_configuration_has_both_names() -> None:
    config = RmatConfig(hidden_size=64, n_slots=48, n_heads=4)
    assert config.to_model_config() == ModelConfig.preset(
        "tiny", vocab_size=512, d_model=64, n_slots=48, n_heads=4
    )
    assert (config.hidden_size, config.d_model, config.vocab_size) == (64, 64, 512)
    config.vocab_size = 300
    assert RmatConfig.from_dict(json.loads(config.to_json_string())).to_model_config().vocab_size == 300
    assert RmatConfig().num_hidden_layers == ModelConfig.preset("tiny").n_layers
    with pytest.raises(ValueError, match="n_slots"):
        RmatConfig(n_slots=0)
    with pytest.raises(AttributeError, match="nonsense"):
        config.nonsense  # noqa: B018


def test_missing_weights_are_drawn_as_ours_are(tmp_path: Path) -> None:
    model = wrapped("recommended", torch.float32)
    left = {name: x for name, x in model.state_dict().items() if "convolution" not in name}
    model.save_pretrained(tmp_path, state_dict=dict(left))
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    for name, value in again.state_dict().items():
        if name in left:
            assert torch.equal(value, left[name]), name
        else:
            assert torch.equal(value[0], torch.ones_like(value[0]))
            assert 0 < value[1:].abs().max() < 2


def test_types_and_vocabularies(tmp_path: Path) -> None:
    config = RmatConfig(**TINY)
    narrow = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    assert {x.dtype for x in narrow.parameters()} == {torch.bfloat16}
    narrow.save_pretrained(tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).dtype == torch.bfloat16
    wide = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert {x.dtype for x in wide.parameters()} == {torch.float32}
    for case in ("recommended", "select_none_token"):
        model = wrapped(case, torch.float32)
        with torch.no_grad():
            before = model(random_tokens(1, 8)).logits
            model.resize_token_embeddings(40)
            assert model.config.to_model_config() == model.model.config
            assert model.config.vocab_size == 40
            after = model(torch.cat([random_tokens(1, 8), torch.tensor([[39]])], 1)).logits
        torch.testing.assert_close(after[:, :8, :29], before)


# Folders


def test_converted_both_ways(folder: Path, theirs: Path, tmp_path: Path, capsys: Any) -> None:
    ours, tokenizer = rmat.load(folder)
    assert tokenizer is not None
    assert {path.name for path in theirs.iterdir()} == {
        *("config.json", "generation_config.json", "model.safetensors", "modeling_rmat.py", "README.md"),
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    }
    card = (theirs / "README.md").read_text()
    assert "library_name: transformers" in card
    assert "pip install 'rmat[hf]'" in card
    model = AutoModelForCausalLM.from_pretrained(theirs)
    tokens = make_tokens(2, 40, vocab_size=260)
    with torch.no_grad():
        expected = ours(tokens)[0]
        assert torch.equal(model(tokens).logits, expected)
        hidden = AutoModel.from_pretrained(theirs)(tokens).last_hidden_state
        assert torch.equal(hidden @ ours.embedding.weight.T, expected)
    config = AutoConfig.from_pretrained(theirs, n_slots=12)
    assert config.to_model_config().n_slots == 12
    ends = [tokenizer.special_id("document"), tokenizer.special_id("turn_end")]
    assert sorted(model.generation_config.eos_token_id) == sorted(ends)
    assert main(["convert", str(theirs), str(tmp_path / "back")]) == 0
    assert "a model folder of rmat" in capsys.readouterr().out
    back, words = rmat.load(tmp_path / "back")
    assert words is not None
    assert words.fingerprint == tokenizer.fingerprint
    assert back.config == ours.config
    assert type(back) is LanguageModel
    assert all(torch.equal(x, ours.state_dict()[name]) for name, x in back.state_dict().items())


def test_what_is_for_other_commands_is_refused(
    folder: Path, theirs: Path, tmp_path: Path, capsys: Any
) -> None:
    source = source_folder(tmp_path / "llama")
    for arguments, words in (
        ([source, tmp_path / "x"], "'llama' of transformers, no rmat model: bring it with rmat import"),
        ([folder, theirs], "is there already"),
        ([tmp_path / "nothing", tmp_path / "x"], "no model"),
    ):
        assert main(["convert", *map(str, arguments)]) == 2
        assert words in capsys.readouterr().err
    with pytest.raises(ValueError, match="rmat convert makes one of rmat"):
        rmat.load(theirs)


def test_an_imported_model_keeps_its_memory_and_chat(tmp_path: Path) -> None:
    source = source_folder(tmp_path / "llama", "llama3")
    ours, tokenizer = rmat.from_pretrained(source, window=32, n_slots=16)
    ours.save(tmp_path / "ours", tokenizer)
    convert(tmp_path / "ours", tmp_path / "theirs")
    words = AutoTokenizer.from_pretrained(tmp_path / "theirs")
    turns = [{"role": "user", "content": "hello the thing"}]
    expected = AutoTokenizer.from_pretrained(source).apply_chat_template(
        turns, add_generation_prompt=True, return_dict=False
    )
    assert words.apply_chat_template(turns, add_generation_prompt=True, return_dict=False) == expected
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "theirs")
    tokens = torch.tensor([expected * 4])
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, ours(tokens)[0])
    convert(tmp_path / "theirs", tmp_path / "back")
    back, chat = rmat.load(tmp_path / "back")
    assert chat is not None
    assert chat.fingerprint == tokenizer.fingerprint
    assert back.config == ours.config


def test_the_tokenizer_is_ours(theirs: Path) -> None:
    ours, words = rmat.load_tokenizer("bytes"), AutoTokenizer.from_pretrained(theirs)
    assert type(words).__name__ in ("TokenizersBackend", "PreTrainedTokenizerFast")
    document = ours.special_id("document")
    for text in ODD_TEXTS:
        assert words(text)["input_ids"] == [document, *ours.encode(text)], text
        assert words.decode(words(text)["input_ids"], skip_special_tokens=True) == text
    assert [*words("a")] == ["input_ids", "attention_mask"]
    assert (words.bos_token, words.eos_token, words.pad_token) == ("<|document|>",) * 3
    assert words.convert_tokens_to_ids("<|user|>") == ours.special_id("user")
    assert "<|user|>" not in words.decode([ours.special_id("user")], skip_special_tokens=True)
    turns = [("system", "Be brief."), ("user", "Who?"), ("assistant", "I."), ("Ann", "You?")]
    messages = [{"role": role, "content": text} for role, text in turns]
    expected = [document, *encode_turns(ours, turns, answer=True)]
    assert words.apply_chat_template(messages, add_generation_prompt=True, return_dict=False) == expected


def test_a_pipeline_chats(theirs: Path, folder: Path) -> None:
    write = pipeline("text-generation", model=str(theirs), device="cpu")
    options = {"max_new_tokens": 8, "do_sample": False, "max_length": None}
    ours, tokenizer = rmat.load(folder)
    assert tokenizer is not None
    for rows in ("Once upon", [{"role": "user", "content": "Who?"}]):
        out = write(rows, return_full_text=False, **options)[0]["generated_text"]
        prompt: Any = rows
        if isinstance(rows, list):
            prompt = [
                tokenizer.special_id("document"),
                *encode_turns(tokenizer, [("user", "Who?")], answer=True),
            ]
        expected = rmat.generate(ours, tokenizer, prompt, max_new_tokens=8, temperature=0)
        assert out == "".join(expected)
    both = write(["Once upon", "A"], return_full_text=False, batch_size=2, **options)
    assert (
        both[0][0]["generated_text"]
        == write("Once upon", return_full_text=False, **options)[0]["generated_text"]
    )


def test_without_the_package_a_folder_says_what_to_install(theirs: Path, tmp_path: Path) -> None:
    """And with it, but without its import, remote code brings it."""
    code = f"""
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "rmat":
            raise ModuleNotFoundError(f"No module named {{name!r}}")
hidden = Hidden()
sys.meta_path.insert(0, hidden)
from transformers import AutoModelForCausalLM
try:
    AutoModelForCausalLM.from_pretrained({str(theirs)!r}, trust_remote_code=True)
except ImportError as error:
    print(error)
sys.meta_path.remove(hidden)
model = AutoModelForCausalLM.from_pretrained({str(theirs)!r}, trust_remote_code=True)
print(type(model).__module__)
model.save_pretrained({str(tmp_path / "again")!r})
"""
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=200, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "Run `pip install rmat`" in done.stdout
    assert done.stdout.splitlines()[-1] == "rmat.integrations.hf.modeling"
    for name in ("config.json", "modeling_rmat.py"):
        assert (tmp_path / "again" / name).read_text() == (theirs / name).read_text()

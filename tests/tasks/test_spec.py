"""SPECs of tasks: what they stand for, what is refused in which words, how long rows are."""

from typing import Any

import pytest

from rmat.tasks import TASKS
from rmat.tasks.babilong import BabilongTask
from rmat.tasks.facts import FactsTask
from rmat.tasks.haystack import Split
from rmat.tasks.mqar import TRAIN_MIX, MqarTask
from rmat.tasks.needle import NeedleTask
from rmat.tasks.passkey import PasskeyTask
from rmat.tasks.recall import RecallTask
from rmat.tasks.registry import is_task, parse_task
from rmat.tasks.task import Member, Task


def only(spec: str, split: Split = "train") -> Member:
    (member,) = parse_task(spec, split)
    return member


def test_a_task_is_told_from_text_by_its_name() -> None:
    assert all(is_task(name) and is_task(f"{name}:a=b") for name in TASKS)
    for text in ("python-stdlib", "recalls", "a/recall", "hf:owner/name:train:text", "recall.txt", ""):
        assert not is_task(text)


@pytest.mark.parametrize(
    ("spec", "task"),
    [
        (
            "recall:pairs=3,keys=9,values=5,fillers=7,queries=0.5",
            RecallTask(n_pairs=3, n_keys=9, n_values=5, n_filler=7, length=8, query_share=0.5),
        ),
        ("mqar:pairs=2,length=16,vocabulary=32,changes=1", MqarTask(pairs=2, vocabulary=32, changes=1)),
        ("mqar:length=16,pairs=2", MqarTask(pairs=2, vocabulary=8192)),
        ("passkey", PasskeyTask(filler=("noise",), split="valid")),
        (
            "passkey:filler=noise+some/books,digits=7",
            PasskeyTask(filler=("noise", "some/books"), split="valid", digits=7),
        ),
        (
            "needle:tasks=multivalue,haystack=books",
            NeedleTask(task="multivalue", haystack="books", split="valid"),
        ),
        ("needle", NeedleTask(task="single_1", haystack="python-stdlib", split="valid")),
        (
            "babilong:facts=babi,filler=noise,tasks=2,questions=all",
            BabilongTask(facts="babi", filler="noise", tasks=(2,), split="valid", questions="all"),
        ),
        ("facts", FactsTask(split="valid")),
        (
            "facts:filler=talk+folder,facts=2,changes=0.25,questions=all",
            FactsTask(filler=("talk", "folder"), split="valid", facts=2, changes=0.25, questions="all"),
        ),
    ],
)
def test_settings_reach_the_task(spec: str, task: Task) -> None:
    member = only(spec, "valid")
    assert member.task == task and member.share == 1.0
    assert member.length == (16 if spec.startswith("mqar") else None)


def test_settings_left_out_have_their_defaults() -> None:
    assert only("recall").task == only("recall:").task
    assert only("recall").task == only("recall:pairs=8,keys=64,values=64,fillers=64,queries=0.2").task
    assert only("passkey").task == only("passkey:filler=noise,digits=5").task


def test_mqar_without_sizes_is_the_published_mixture() -> None:
    members = parse_task("mqar", "train")
    assert [(m.length, m.task, m.share) for m in members] == [
        (length, MqarTask(pairs=pairs, vocabulary=8192), share) for length, pairs, share in TRAIN_MIX
    ]


def test_parts_joined_by_plus_are_equal_shares() -> None:
    needles = parse_task("needle:tasks=single_1+tracking,from=500", "test")
    assert [m.task.task for m in needles if isinstance(m.task, NeedleTask)] == ["single_1", "tracking"]
    stories = parse_task("babilong:facts=babi", "test")
    assert [m.task.tasks for m in stories if isinstance(m.task, BabilongTask)] == [(n,) for n in range(1, 6)]
    assert {(m.share, m.shortest) for m in needles} == {(1.0, 500)}


def test_many_pairs_need_a_long_window_not_another_setting() -> None:
    """The rows' length is that of the window; a default length used to refuse more than 127 pairs."""
    import numpy as np

    task = only("recall:pairs=200,keys=300").task
    assert task.row(np.random.default_rng(0), 512, None).tokens.shape == (512,)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("mqar:pars=3", "mqar has no setting 'pars': did you mean 'pairs'?"),
        ("passkey:fillers=noise", "passkey has no setting 'fillers': did you mean 'filler'?"),
        ("passkey:form=100", "passkey has no setting 'form': did you mean 'from'?"),
        ("recall:split=test", "recall has no setting 'split': did you mean"),
        ("recall:pairs", "'pairs' is no setting: write key=value, for example pairs=..."),
        ("recall:pairs=", "'pairs=' is no setting: write key=value"),
        ("needle:single_1", "'single_1' is no setting: write key=value, for example tasks=..."),
        ("recall:pairs=2,pairs=3", "pairs is given twice: leave one out"),
        ("recall:pairs=two", "pairs=two is not possible: give a whole number of at least 1"),
        ("recall:pairs=-2", "pairs=-2 is not possible: give a whole number of at least 1"),
        ("recall:keys=0", "keys=0 is not possible: give a whole number of at least 1"),
        ("recall:queries=often", "queries=often is not possible: give a number"),
        ("recall:queries=nan", "recall.query_share must lie in (0, 1], got nan"),
        ("recall:pairs=65", "recall.n_pairs 65 exceeds n_keys 64"),
        ("passkey:grow=10", "grow needs from, the length to grow from"),
        ("passkey:from=0", "from=0 is not possible: give a whole number of at least 1"),
        ("passkey:from=9,grow=1.5", "grow=1.5 is not possible: give a whole number of at least 0"),
        ("passkey:digits=19", "digits must lie in 1..18, got 19"),
        ("mqar:from=64", "rows of this task have a length of their own: leave from and grow out"),
        (
            "mqar:pairs=2,length=16,from=8",
            "rows of this task have a length of their own: leave from and grow out",
        ),
        ("mqar:pairs=2", "give pairs and length together, or neither for the published mixture"),
        ("mqar:length=64", "give pairs and length together, or neither for the published mixture"),
        ("mqar:vocabulary=3", "vocabulary=3 is not possible: give a whole number of at least 4"),
        (
            "mqar:pairs=16,length=64,vocabulary=32",
            "mqar.pairs is 16 with 32 tokens: give 1 to 15",
        ),
        ("mqar:pairs=2,length=64,changes=3", "mqar.changes is 3: give 0 to 2, the pairs there are"),
        ("needle:tasks=single_9", "task='single_9' is not possible; choose one of single_1,"),
        ("needle:tasks=single_1+", "task='' is not possible; choose one of"),
        ("babilong:facts=x,tasks=11", "tasks must be of 1..10, got (11,)"),
        ("babilong:facts=x,tasks=1+two", "tasks=two is not possible: give a whole number of at least 1"),
        ("babilong:facts=x,questions=some", "questions=some is not possible: choose last or all"),
        ("facts:facts=none", "facts=none is not possible: give a whole number of at least 1"),
        ("facts:facts=17", "facts must lie in 1..16, got 17"),
        ("facts:changes=often", "changes=often is not possible: give a number"),
        ("facts:changes=1.5", "changes must lie in 0..1, got 1.5"),
        ("facts:questions=some", "questions=some is not possible: choose last or all"),
        ("facts:turns=5", "facts has no setting 'turns'"),
        ("babilong", "babilong needs facts: write babilong:facts=..."),
        ("babilong:tasks=1", "babilong needs facts: write babilong:facts=..."),
    ],
)
def test_a_mistake_is_one_sentence_that_begins_with_the_spec(spec: str, sentence: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_task(spec, "train")
    assert str(caught.value).startswith(f"{spec!r}: ") and sentence in str(caught.value)


def lengths(window: int, batches: range, **fields: Any) -> set[int]:
    """All lengths that these batches can have."""
    member = Member(task=PasskeyTask(), **fields)
    return {member.draw_length(window, n, u / 997) for n in batches for u in range(997)}


def test_a_length_of_its_own_is_always_drawn() -> None:
    assert lengths(100, range(3), length=30) == {30}


def test_without_from_rows_are_as_long_as_the_window() -> None:
    assert lengths(100, range(3)) == {100}


def test_lengths_lie_between_from_and_the_window_and_reach_both() -> None:
    member = only("passkey:from=90")
    assert (member.shortest, member.grow) == (90, 0)
    assert lengths(100, range(3), shortest=member.shortest) == set(range(90, 101))


def test_lengths_are_drawn_evenly() -> None:
    member = only("passkey:from=91")
    drawn = [member.draw_length(100, 0, u / 1000) for u in range(1000)]
    assert {drawn.count(length) for length in range(91, 101)} == {100}


def test_from_above_the_window_is_the_window() -> None:
    assert lengths(100, range(3), shortest=300) == {100}


def test_the_longest_row_grows_to_the_window_and_stays_there() -> None:
    member = only("passkey:from=50,grow=10")
    assert (member.shortest, member.grow) == (50, 10)
    longest = [max(lengths(100, range(n, n + 1), shortest=50, grow=10)) for n in range(14)]
    assert longest == [50, 55, 60, 65, 70, 75, 80, 85, 90, 95, 100, 100, 100, 100]
    assert min(lengths(100, range(14), shortest=50, grow=10)) == 50

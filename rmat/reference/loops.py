"""Loop-level definitions of every mechanism of the model: slow, and meant to be obviously right.

The fast functions of `rmat.ops` and the modules of `rmat.model` are tested against this file. Everything
here works on one row and one document: a token is an index p >= 0 counted from the start of its document, a
vector is a tensor of rank one, and a set of things to attend to is a Python list. There are no masks, no
padding, no batches and no in-place writes.

Letters: T tokens of the document read so far, S segment length, C chunk length, H query heads, K key/value
heads (H divisible by K, query head h reads key/value head h // (H // K)), D head width, E model width, W
writes per segment, M memory slots. Numbers are computed in the dtype of the inputs, which tests choose as
float64.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

SELECT_STEPS_PER_UNIT = 256  # closer scores are one rank, so that rounding does not choose what is kept


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One thing a query head may look at: its attention logit (a scalar) and its value (D,)."""

    logit: Tensor
    value: Tensor


@dataclass(frozen=True, kw_only=True)
class Slot:
    """One place of the memory bank: key (K, D), value (K, D), log gate (a scalar, <= 0), source position
    (tokens)."""

    key: Tensor
    value: Tensor
    log_gate: Tensor
    position: int


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """What a writer offers to the bank: vector (E,), its gate's score (a scalar, None without a scorer), its
    source position (tokens from the start of the document)."""

    vector: Tensor
    score: Tensor | None
    position: int


# Positions
def segment_start(p: int, segment_len: int) -> int:
    """First token of the segment that holds token p."""
    return p // segment_len * segment_len


def segment_keys(p: int, segment_len: int) -> list[int]:
    """Tokens that token p sees through the full stream: its own segment up to itself."""
    return [s for s in range(p + 1) if s // segment_len == p // segment_len]


def chunk_keys(p: int, chunk_len: int, lookback: int) -> list[int]:
    """Tokens that token p sees through the chunked stream: its own chunk up to itself and `lookback` whole
    chunks before it. Chunks are counted from the start of the document, so looking back may cross a
    segment's edge."""
    return [s for s in range(p + 1) if 0 <= p // chunk_len - s // chunk_len <= lookback]


def rotate(vector: Tensor, position: int, theta: float, scaling: Sequence[float] | None = None) -> Tensor:
    """Rotary embedding of one vector (D,): coordinates i and i + D/2 turn by position * theta ** (-2 i / D)
    radians, or less where `scaling` stretches their wave."""
    half = vector.shape[0] // 2
    turned = []
    for i in range(2 * half):
        angle = position * stretched(theta ** (-2 * (i % half) / (2 * half)), scaling)
        partner = -vector[i + half] if i < half else vector[i - half]
        turned.append(vector[i] * math.cos(angle) + partner * math.sin(angle))
    return torch.stack(turned)


def stretched(frequency: float, scaling: Sequence[float] | None) -> float:
    """A rotary frequency (radians a token) as Llama 3.1 stretches it. scaling: factor, fewest and most turns
    in the context trained before, and that context's length. Below the fewest turns it is divided by the
    factor, above the most it stays, between it is a mixture of both."""
    if scaling is None:
        return frequency
    factor, fewest, most, context = scaling
    turns = context * frequency / (2 * math.pi)
    if turns <= fewest:
        return frequency / factor
    if turns >= most:
        return frequency
    share = (turns - fewest) / (most - fewest)
    return share * frequency + (1 - share) * frequency / factor


# Attention
def read(entries: Sequence[Entry]) -> Tensor | None:
    """Softmax over the logits, then the weighted sum of the values (D,); None where there is nothing to look
    at."""
    if not entries:
        return None
    largest = max(float(entry.logit.detach()) for entry in entries)
    weights = [torch.exp(entry.logit - largest) for entry in entries]
    total = sum(weights[1:], start=weights[0])
    parts = [weight / total * entry.value for weight, entry in zip(weights, entries, strict=True)]
    return sum(parts[1:], start=parts[0])


def read_newest(entries: Sequence[Entry], rest: Tensor) -> Tensor:
    """Stick-breaking over entries that stand oldest first: from the newest back, each takes its
    sigmoid(logit) of what is left; what nobody took goes to the value `rest` (D,)."""
    result, left = torch.zeros_like(rest), torch.ones_like(rest[0])
    for entry in reversed(entries):
        share = 1 / (1 + torch.exp(-entry.logit))
        result = result + left * share * entry.value
        left = left * (1 - share)
    return result + left * rest


def local_entries(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    p: int,
    seen: Sequence[int],
    head: int,
    segment_len: int,
    theta: float,
    scaling: Sequence[float] | None = None,
) -> list[Entry]:
    """What query head `head` of token p finds at the tokens `seen`.

    queries (T, H, D), keys and values (T, K, D). Queries and keys are rotated by their distance from the
    start of the query's segment (negative for keys before it), so the same numbers come out at any age of
    the document.
    """
    group = head // (queries.shape[1] // keys.shape[1])
    origin = segment_start(p, segment_len)
    query = rotate(queries[p, head], p - origin, theta, scaling)
    entries = []
    for s in seen:
        key = rotate(keys[s, group], s - origin, theta, scaling)
        entries.append(Entry(logit=(query * key).sum() / math.sqrt(query.shape[0]), value=values[s, group]))
    return entries


def memory_entries(
    query: Tensor,
    slots: Sequence[Slot],
    head: int,
    *,
    offsets: Sequence[Tensor] = (),
    null: Entry | None = None,
) -> list[Entry]:
    """What query head `head` finds in the bank: softmax runs over [null slot | slots], logit q . k / sqrt(D)
    + log g.

    query (H, D); `slots` oldest first; `offsets`, if any, one (K, D) for each slot, added to its key
    (positions of the memory); `null` is the slot that is always there, if the model has one. Keys are not
    rotated.
    """
    entries = [] if null is None else [null]
    for index, slot in enumerate(slots):
        group = head // (query.shape[0] // slot.key.shape[0])
        key = slot.key[group] + offsets[index][group] if offsets else slot.key[group]
        logit = (query[head] * key).sum() / math.sqrt(key.shape[0]) + slot.log_gate
        entries.append(Entry(logit=logit, value=slot.value[group]))
    return entries


def admitted_entries(
    query: Tensor,
    slots: Sequence[Slot],
    head: int,
    *,
    at: int,
    first: int,
    theta: float | None,
    scaling: Sequence[float] | None = None,
) -> list[Entry]:
    """What query head `head` finds among tokens that were admitted, with memory_projections="local": logit
    q . k / sqrt(D) + log g.

    query (H, D) and the slots' keys: of the local stream, before rotation. `slots`: sinks, then the bank,
    oldest first. theta: rotary base of the head, None where slots have no places. The query stands at `at`,
    the newest slot right before `first`, both counted from the start of the query's segment.
    """
    entries = []
    for index, slot in enumerate(slots):
        group = head // (query.shape[0] // slot.key.shape[0])
        q, k = query[head], slot.key[group]
        if theta is not None:
            q = rotate(q, at, theta, scaling)
            k = rotate(k, first - (len(slots) - index), theta, scaling)
        logit = (q * k).sum() / math.sqrt(q.shape[0]) + slot.log_gate
        entries.append(Entry(logit=logit, value=slot.value[group]))
    return entries


def offered_tokens(end: int, segment_len: int, lag: int, n_sinks: int) -> list[int]:
    """Tokens that are offered to a bank of local keys when the segment before token `end` closes: as many as
    a segment has, the last of them `lag` tokens before its end; sinks are not offered."""
    return [p for p in range(end - lag - segment_len, end - lag) if p >= n_sinks]


def sink_tokens(start: int, lag: int, n_sinks: int) -> list[int]:
    """The first tokens of the document, as far as a segment that begins at `start` finds them as sinks."""
    return [p for p in range(n_sinks) if p < start - lag]


def slot_rank(index: int, n_filled: int) -> int:
    """Rank of the slot at `index` (0 = oldest) of a bank of `n_filled` slots, counted from the newest (rank
    0)."""
    return n_filled - 1 - index


def age_bucket(reader_start: int, position: int, segment_len: int, n_buckets: int) -> int:
    """Bucket of a slot's age for a reader whose segment starts at `reader_start`: the age in segments,
    rounded up, falls into buckets [1], [2, 3], [4 .. 7], ...; the last bucket takes everything older."""
    age = (reader_start - position + segment_len - 1) // segment_len
    return min(age.bit_length() - 1, n_buckets - 1)


def local_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    sees: Callable[[int], Sequence[int]],
    segment_len: int,
    thetas: Sequence[float],
) -> Tensor:
    """A local stream over a whole document: queries (T, H, D), keys and values (T, K, D), result (T, H, D).

    `sees(p)` lists the tokens that token p looks at: `segment_keys` for the full stream, `chunk_keys` for
    the chunked one. `thetas` holds one rotary base for each query head.
    """
    rows = []
    for p in range(queries.shape[0]):
        heads = []
        for h in range(queries.shape[1]):
            found = read(local_entries(queries, keys, values, p, sees(p), h, segment_len, thetas[h]))
            assert found is not None, "a token sees at least itself"
            heads.append(found)
        rows.append(torch.stack(heads))
    return torch.stack(rows)


def fuse(parts: Sequence[Tensor | None], scores: Sequence[Tensor]) -> Tensor:
    """Weighted sum of the streams' results of one head: parts of (D,), scores scalars, weights
    softmax(scores).

    A stream that found nothing (None) adds zeros but keeps its weight: an empty bank does not change the
    others.
    """
    largest = max(float(score.detach()) for score in scores)
    weights = [torch.exp(score - largest) for score in scores]
    total = sum(weights[1:], start=weights[0])
    found = [weight / total * part for weight, part in zip(weights, parts, strict=True) if part is not None]
    return sum(found[1:], start=found[0])


# Around the attention
def causal_depthwise_convolution(x: Tensor, taps: Tensor, bias: Tensor | None = None) -> Tensor:
    """y_p[e] = bias[e] + sum_j taps[e, j] x_{p - (w - 1 - j)}[e]; what lies before the document counts as
    zero.

    x (T, E), taps (E, w) with the current token's tap last, bias (E,); result (T, E).
    """
    width = taps.shape[1]
    rows = []
    for p in range(x.shape[0]):
        row = torch.zeros_like(x[p]) if bias is None else bias
        for j in range(width):
            if (source := p - (width - 1 - j)) >= 0:
                row = row + taps[:, j] * x[source]
        rows.append(row)
    return torch.stack(rows)


# Writers: what a closed segment offers to the bank. `w` (S, E) are the segment's vectors, `start` its first
# token.
def score_of(vector: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Score of the write gate for one vector: vector (E,), weight (E,), bias a scalar; the gate is its
    sigmoid."""
    return (vector * weight).sum() + bias


def _scored(vector: Tensor, position: int, scorer: tuple[Tensor, Tensor] | None) -> Candidate:
    score = None if scorer is None else score_of(vector, *scorer)
    return Candidate(vector=vector, score=score, position=position)


def write_mean(w: Tensor, start: int, scorer: tuple[Tensor, Tensor] | None = None) -> list[Candidate]:
    """One candidate: the mean of the segment's vectors, placed at the segment's last token."""
    total = sum(w[1:], start=w[0])
    return [_scored(total / w.shape[0], start + w.shape[0] - 1, scorer)]


def write_pool(
    w: Tensor, start: int, queries: Tensor, scorer: tuple[Tensor, Tensor] | None = None
) -> list[Candidate]:
    """One candidate for each learned query (W, E): softmax over tokens of query . w / sqrt(E), the weighted
    sum."""
    candidates = []
    for query in queries:
        entries = [Entry(logit=(query * vector).sum() / math.sqrt(w.shape[1]), value=vector) for vector in w]
        pooled = read(entries)
        assert pooled is not None
        candidates.append(_scored(pooled, start + w.shape[0] - 1, scorer))
    return candidates


def write_select(w: Tensor, start: int, n_writes: int, scorer: tuple[Tensor, Tensor]) -> list[Candidate]:
    """The `n_writes` best scored tokens in time order; scores of one step of 1/256 are equal, the earlier
    token wins."""
    return best_of([_scored(vector, start + offset, scorer) for offset, vector in enumerate(w)], n_writes)


def best_of(candidates: Sequence[Candidate], n_writes: int) -> list[Candidate]:
    """The choice of `write_select` among candidates that have scores."""

    def order(candidate: Candidate) -> tuple[int, int]:
        assert candidate.score is not None
        return (-math.floor(float(candidate.score.detach()) * SELECT_STEPS_PER_UNIT), candidate.position)

    return sorted(sorted(candidates, key=order)[:n_writes], key=lambda candidate: candidate.position)


def offer(
    x: Tensor, tokens: Sequence[int], n_writes: int, scorer: tuple[Tensor, Tensor] | None, best: bool
) -> list[Candidate]:
    """Of the document's vectors x (T, E) those of `tokens`, or (`best`) the `n_writes` best scored of
    them."""
    candidates = [_scored(x[p], p, scorer) for p in tokens]
    return best_of(candidates, n_writes) if best else candidates


def write_all(w: Tensor, start: int, scorer: tuple[Tensor, Tensor] | None = None) -> list[Candidate]:
    """Every token of the segment."""
    return [_scored(vector, start + offset, scorer) for offset, vector in enumerate(w)]


# Gates and the bank
def gate_is_open(candidate: Candidate, refuses: bool) -> bool:
    """Whether a candidate enters the bank: where writes may be refused, its gate sigmoid(score) must exceed
    1/2."""
    return not refuses or (candidate.score is not None and float(candidate.score.detach()) > 0)


def log_gate(candidate: Candidate) -> Tensor:
    """log sigmoid(score), zero for a candidate without a score: what its slot adds to the attention logit."""
    if candidate.score is None:
        return torch.zeros_like(candidate.vector[0])
    return -torch.log1p(torch.exp(-candidate.score))


def learn_through_value(slot: Slot) -> Slot:
    """The slot whose gate learns from its value, not its logit: v * g / g', log g', where g' is g without
    gradient."""
    held = slot.log_gate.detach()
    return replace(slot, value=slot.value * torch.exp(slot.log_gate - held), log_gate=held)


def gru_gate(candidate: Tensor, previous: Tensor, w_z: Tensor, u_z: Tensor, b_z: Tensor) -> Tensor:
    """m' = z * c + (1 - z) * m with z = sigmoid(W_z c + U_z m + b_z).

    candidate c (E,), previous m (E,), w_z and u_z (E, E), b_z (E,); z = 0 keeps the old vector, z = 1
    replaces it.
    """
    z = 1 / (1 + torch.exp(-(w_z @ candidate + u_z @ previous + b_z)))
    return z * candidate + (1 - z) * previous


def strength(slot: Slot) -> int:
    """Score of a slot's gate, log(g / (1 - g)), in whole steps of 1/256: closer ones are equally strong."""
    log_gate = min(float(slot.log_gate.detach()), -1e-300)  # a gate that is wholly open is no infinity
    return math.floor((log_gate - math.log(-math.expm1(log_gate))) * SELECT_STEPS_PER_UNIT)


def push(
    bank: Sequence[Slot],
    slot: Slot,
    n_slots: int,
    weakest: bool = False,
    fade: float = 0.0,
    n_newest: int = 0,
) -> list[Slot]:
    """The bank (oldest first) after one slot came in at its end; beyond `n_slots` the oldest falls out, or
    (`weakest`) the oldest of those whose gate is weakest, which may be the one that came, the `n_newest` last
    ones aside. Scores have lost `fade`, in whole steps of 1/256, in 1,024 tokens."""
    longer = [*bank, slot]

    def remaining(i: int) -> int:
        age = slot.position - longer[i].position
        return strength(longer[i]) * 1024 - round(fade * SELECT_STEPS_PER_UNIT) * age

    if len(longer) > n_slots:
        may_leave = range(max(len(longer) - n_newest, 1))
        longer.pop(min(may_leave, key=remaining) if weakest else 0)
    return longer

"""Sessions: requests that come, leave and are cancelled over one cache."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from sparrowlm.config import ModelConfig
from sparrowlm.errors import ConfigError, UserError
from sparrowlm.infer.engine import Engine, Piece, Request, Session
from sparrowlm.infer.sampling import Sampling
from sparrowlm.model.cache import KVCache, Window
from sparrowlm.model.transformer import Output, Transformer
from sparrowlm.runtime import Runtime
from sparrowlm.text.tokenizer import byte_tokenizer
from writing_support import full_logits, random_model, write_without_cache

EXACT = Runtime(torch.device("cpu"), "float64")
SMALL = ModelConfig(vocab_size=97, d_model=16, n_layers=2, n_heads=2, n_kv_heads=1, max_seq_len=32)
MODEL = random_model(SMALL)


class Counting:
    """A decoder with the shape of every pass on record."""

    def __init__(self, engine: Engine) -> None:
        self.decoder, self.passes = engine.decoder, []
        self.config, self.device = engine.decoder.config, engine.decoder.device
        self.dtype, self.logits = engine.decoder.dtype, engine.decoder.logits
        engine.decoder = self  # pyright: ignore[reportAttributeAccessIssue]

    def __call__(self, tokens: torch.Tensor, cache: KVCache) -> Output:
        self.passes.append(tuple(tokens.shape))
        return self.decoder(tokens, cache)

    def read(self) -> int:
        """Tokens of prompts that were read since the last call."""
        done = sum(length for rows, length in self.passes if length > 1)
        self.passes.clear()
        return done


def _engine(**options) -> Engine:
    return Engine(MODEL, None, EXACT, **options)


def _request(prompt: list[int], max_tokens: int = 5, **settings) -> Request:
    return Request(prompt, Sampling(temperature=0.0, max_tokens=max_tokens, **settings))


def _finish(session: Session) -> list[Piece]:
    pieces: list[Piece] = []
    while session.busy:
        pieces += session.round()
    return pieces


def _ids(pieces: list[Piece], row: int) -> list[int]:
    return [piece.token for piece in pieces if piece.row == row]


def _alone(request: Request) -> list[int]:
    return write_without_cache(MODEL, list(request.prompt), request.sampling, 97, request.sample)


def test_requests_that_come_and_go_are_written_as_each_alone() -> None:
    """Some join while others write, more than there are slots, with prompts that begin alike,
    are read in parts, slide, and are cancelled; no row is moved by any of it."""
    generator = torch.Generator().manual_seed(3)
    stem = torch.randint(97, (20,), generator=generator).tolist()
    requests = []
    for n in range(30):
        cut, tail = int(torch.randint(1, 20, (), generator=generator)), [n, 3 * n % 97]
        sampling = Sampling(temperature=n % 3 * 0.5, max_tokens=1 + 7 * n % 40, seed=n)
        requests.append(Request(stem[:cut] + tail[: n % 3], sampling, sample=n))
    session = _engine(slots=4).session(chunk=5)
    cancelled, found, sent = {4, 11, 12, 26}, [], 0
    while session.busy or sent < len(requests):
        for request in requests[sent : sent + sent % 3 + 1]:
            assert session.submit(request) == sent
            sent += 1
        found += session.round()
        for row in cancelled:
            if len(_ids(found, row)) >= 2:
                session.cancel(row)
    assert session.active == session.waiting == 0
    for row, request in enumerate(requests):
        written, expected = _ids(found, row), _alone(request)
        if row in cancelled:
            assert written == expected[: len(written)]
        else:
            assert written == expected


def test_the_next_turn_reads_only_what_is_new() -> None:
    engine = _engine(slots=3)
    counting, session = Counting(engine), engine.session()
    first = list(range(10, 20))
    session.submit(_request(first))
    answer = _ids(_finish(session), 0)
    assert counting.read() == 9
    session.submit(_request([50, 51, 52]))  # another chat, in between
    _finish(session)
    counting.read()
    turn = [*first, *answer, 60, 61, 62]
    row = session.submit(_request(turn))
    assert _ids(_finish(session), row) == _alone(_request(turn))
    assert counting.read() == 3  # the answer's last token was never read; 62 is left to the round


def test_a_prompt_shares_what_one_under_way_has_read() -> None:
    engine = _engine(slots=2)
    counting, session = Counting(engine), engine.session()
    stem = list(range(12))
    rows = [session.submit(_request([*stem, 80], 8)), session.submit(_request([*stem, 81, 82], 8))]
    pieces = _finish(session)
    assert counting.read() == 12 + 0  # 81 alone is a pass of one token
    for row, tail in zip(rows, ([80], [81, 82]), strict=True):
        assert _ids(pieces, row) == _alone(_request([*stem, *tail], 8))


def test_the_slot_that_was_free_for_longest_is_overwritten() -> None:
    engine = _engine(slots=2)
    counting, session = Counting(engine), engine.session()
    old, kept, new = [1] * 9, [2] * 9, [3] * 9
    for prompt in (old, kept, new):
        session.submit(_request(prompt, 2))
        _finish(session)
    counting.read()
    session.submit(_request(kept, 2))
    _finish(session)
    assert counting.read() == 0
    session.submit(_request(old, 2))
    _finish(session)
    assert counting.read() == 8


def test_a_long_prompt_does_not_hold_up_the_others() -> None:
    engine = _engine(slots=2)
    counting, session = Counting(engine), engine.session(chunk=4)
    session.submit(_request([5, 6], 12))
    session.round()
    late = session.submit(_request(list(range(30, 60)), 2))
    counting.read()
    for _ in range(29 // 4):
        assert [piece.row for piece in session.round()] == [0]
        assert counting.read() == 4
    assert [piece.row for piece in session.round()] == [0, late]


def test_a_cancelled_request_frees_its_slot_for_the_next_round() -> None:
    session = _engine(slots=1).session()
    first, second, third = (session.submit(_request([n, n], 20)) for n in (1, 2, 3))
    assert [piece.row for piece in session.round()] == [first]
    session.cancel(first)
    session.cancel(third)  # waits
    session.cancel(99)  # never was
    assert (session.active, session.waiting, session.slots) == (0, 1, 1)
    assert [piece.row for piece in session.round()] == [second]
    assert _ids(_finish(session), second) == _alone(_request([2, 2], 20))[1:]
    assert not session.busy


def test_a_session_of_fewer_ids_than_the_context_ends_there() -> None:
    session = _engine(slide=False).session(max_len=8)
    with pytest.raises(UserError, match=r"9 tokens.* 8"):
        session.submit(_request([1] * 9))
    session.submit(_request([1] * 6, 20))
    pieces = _finish(session)
    assert [piece.end for piece in pieces] == ["", "", "context"]  # the last one needs no room


def test_a_refused_request_leaves_no_trace() -> None:
    session = _engine().session()
    with pytest.raises(ConfigError, match="stop"):
        session.submit(_request([1], stop=("a",)))
    with pytest.raises(UserError, match="logprobs is 98"):
        session.submit(_request([1])._replace(logprobs=98))
    assert not session.busy
    assert session.submit(_request([1])) == 0


def test_log_probabilities_are_those_of_the_model_itself() -> None:
    """Whatever the sampling does to the distribution that is drawn from."""
    sampling = Sampling(temperature=0.3, top_k=3, repetition_penalty=1.4, max_tokens=6)
    session = _engine().session()
    prompt = [7, 8, 9]
    for count in (None, 0, 4):
        session.submit(Request(prompt, sampling, logprobs=count))
    pieces = _finish(session)
    assert _ids(pieces, 0) == _ids(pieces, 1) == _ids(pieces, 2)
    ids = [*prompt, *_ids(pieces, 0)]
    full = full_logits(MODEL, ids).log_softmax(-1)[len(prompt) - 1 : -1]
    for row, count in enumerate((None, 0, 4)):
        for at, piece in enumerate(piece for piece in pieces if piece.row == row):
            if count is None:
                assert (piece.logprob, piece.top) == (None, ())
                continue
            assert piece.logprob == pytest.approx(full[at, piece.token].item(), abs=1e-5)
            best = full[at].topk(count)
            assert [id for id, _ in piece.top] == best.indices.tolist()
            assert [nats for _, nats in piece.top] == pytest.approx(best.values.tolist(), abs=1e-5)


def test_spare_rows_of_the_table_have_no_probability() -> None:
    model = random_model(replace(SMALL, vocab_size=300))
    engine = Engine(model, byte_tokenizer(), EXACT)
    session = engine.session()
    session.submit(Request([1], Sampling(max_tokens=1), logprobs=257))
    (piece,) = session.round()
    assert sum(torch.tensor([nats for _, nats in piece.top]).exp()) == pytest.approx(1, abs=1e-5)
    assert max(id for id, _ in piece.top) == 256


def _near_ties() -> Transformer:
    """Every id has a twin whose logit differs from its own in the last bits only."""
    model = random_model(replace(SMALL, vocab_size=200, d_model=48, max_seq_len=160)).float()
    with torch.no_grad():
        twins = model.embed.weight[::2]
        model.embed.weight[1::2] = twins * (1 + 2e-7 * torch.randn_like(twins))
    return model


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_in_exact_mode_a_request_is_the_same_alone_and_among_64_others(precision: str) -> None:
    """To the last bit: 64 that come at different times, with prompts that begin alike, near ties
    at every token, and others that are cancelled."""
    model, generator = _near_ties(), torch.Generator().manual_seed(5)
    engine = Engine(model, None, Runtime(torch.device("cpu"), precision), slots=64, exact=True)
    stem = torch.randint(200, (140,), generator=generator).tolist()
    requests = []
    for n in range(64):
        length = int(torch.randint(1, 140, (), generator=generator))
        sampling = Sampling(temperature=0.0, max_tokens=2 + n % 9)
        requests.append(Request([*stem[:length], n, 7], sampling, logprobs=2))
    session, found, rows = engine.session(chunk=200), [], []
    for at, request in enumerate(requests):
        rows.append(session.submit(request))
        found += session.round() if at % 3 == 0 else []
        if at % 10 == 9:
            other = session.submit(Request(stem[:at], Sampling(max_tokens=90)))
            found += session.round()
            session.cancel(other)
    found += _finish(session)
    for at in range(0, 64, 7):
        among = [piece._replace(row=0) for piece in found if piece.row == rows[at]]
        assert list(engine.stream([requests[at]])) == among


def test_passes_of_one_shape_write_as_each_request_alone() -> None:
    """What a CUDA graph is asked for, with the graph itself left out: all slots, idle ones too,
    and spans that grow in steps."""
    engine = _engine(slots=3)
    session, spans = engine.session(), set()

    def step(tokens: torch.Tensor, window: Window) -> torch.Tensor:
        assert tokens.shape == (3, 1)
        assert window.mask is not None and window.start is None  # noqa: PT018
        spans.add(window.span)
        return engine.decoder.step(tokens, session._cache, window)

    session._graphs = step  # pyright: ignore[reportAttributeAccessIssue]
    requests = [_request([n, 2 * n, 5], 6 + 9 * n) for n in range(5)]
    rows = [session.submit(request) for request in requests]
    pieces = _finish(session)
    assert spans == {32}
    for row, request in zip(rows, requests, strict=True):
        assert _ids(pieces, row) == _alone(request)


@pytest.mark.gpu
def test_captured_steps_write_as_full_recomputation_does() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    runtime = Runtime(torch.device("cuda", 0), "float64")
    model = copy.deepcopy(MODEL).to(runtime.device)
    session = Engine(model, None, runtime, slots=3, compile=True).session()
    assert session._graphs is not None
    requests = [_request([n, 2 * n, 5], 6 + 9 * n) for n in range(5)]
    rows = [session.submit(request) for request in requests]
    pieces = _finish(session)
    for row, request in zip(rows, requests, strict=True):
        assert _ids(pieces, row) == _alone(request)

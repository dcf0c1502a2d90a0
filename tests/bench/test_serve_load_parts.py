"""Parts of ``python -m bench.serve`` by themselves: laws, arithmetic, ends of answers, flags."""

from __future__ import annotations

import asyncio
import random
from itertools import islice, pairwise
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

import pytest

from bench.serve.command import main
from bench.serve.exchange import Exchange
from bench.serve.laws import Lengths, arrivals
from bench.serve.load import Asked, Load, sums
from bench.serve.records import VANISHED, Record
from bench.serve.summary import Slo, Window, spread, summary
from engine import SteerError


def record(index: int, due: float, arrivals: list[float], counts: list[int], **more: Any) -> Record:
    end = arrivals[-1] if arrivals else due + 1
    tokens = sum(counts)
    return Record(index, due, due, end, arrivals, counts, tokens=tokens, **more)


def test_the_arithmetic_by_hand():
    """Three answers, one that left and one error, of which the first is the warm-up's."""
    records = [
        record(0, 0.0, [0.5, 1.0, 2.0], [1, 1, 2]),
        record(1, 1.0, [1.1, 1.2, 1.5], [1, 1, 3]),
        record(2, 2.0, [2.4, 2.5], [1, 1]),
        record(3, 2.0, [2.1], [1], outcome=VANISHED),
        record(4, 2.0, [], [], outcome="http 429"),
    ]
    window = Window.of(records, 1, None)
    assert (window.begin, window.end) == (1.0, 3.0)
    row = summary(records, window, 1, Slo.parse("ttft=0.2,tpot=0.15"))
    assert records[1].intervals() == pytest.approx([0.1, 0.1])
    assert (records[1].ttft, records[1].tpot) == (pytest.approx(0.1), pytest.approx(0.1))
    assert row["requests"] == 4 and row["whole"] == 2 and row["warm_up"] == 1
    assert row["ttft"]["p50"] == pytest.approx(0.25) and row["ttft"]["max"] == pytest.approx(0.4)
    # In the window: 3 tokens of the warm-up's answer, 5, 2, and 1 of the client that left.
    assert row["tokens_per_second"] == pytest.approx((3 + 5 + 2 + 1) / 2)
    assert row["requests_per_second"] == pytest.approx(3 / 2)
    # Of three that stayed, the second is too late and the error meets nothing.
    assert row["goodput_share"] == pytest.approx(1 / 3)
    assert row["goodput_per_second"] == pytest.approx(1 / 2)
    assert row["outcomes"] == {"ok": 2, "vanished": 1, "http 429": 1}
    timed = Window.of(records, 0, (1.0, 2.0))
    assert summary(records, timed, 0, Slo({}))["goodput_share"] is None


def test_percentiles():
    assert spread([]) is None
    assert spread([2.0]) == {"p50": 2, "p90": 2, "p99": 2, "mean": 2, "max": 2}
    found = spread(float(i) for i in range(101))
    assert found == {"p50": 50, "p90": 90, "p99": 99, "mean": 50, "max": 100}


def test_laws():
    """Each law's values, the same for the same seed."""
    many = list(islice(arrivals("poisson", 8, 3), 4001))
    assert many == list(islice(arrivals("poisson", 8, 3), 4001)) and many[0] == 0
    assert many != list(islice(arrivals("poisson", 8, 4), 4001))
    gaps = [later - earlier for earlier, later in pairwise(many)]
    assert mean(gaps) == pytest.approx(1 / 8, rel=0.1) == pytest.approx(pstdev(gaps), rel=0.1)
    assert list(islice(arrivals("even", 4, 0), 4)) == [0, 0.25, 0.5, 0.75]
    source = random.Random(0)
    for text, low, high, typical in (
        ("7", 7, 7, 7),
        ("uniform:3:9", 3, 9, 6),
        ("lognormal:50:0.5:120", 1, 120, 50),
    ):
        law = Lengths.parse("--x", text)
        drawn = sorted(law.draw(source) for _ in range(2000))
        assert low <= drawn[0] and drawn[-1] <= high and law.typical == typical
        assert drawn[1000] == pytest.approx(typical, rel=0.1)
    assert {len(sums(source, n)) for n in (5, 6, 50)} == {5, 6, 50}


def test_shares_are_dealt_once():
    """Requests of several processes are those of one; a rate's moments too."""
    for load in (
        Load(requests=11, seconds=None, at_once=5),
        Load(requests=None, seconds=2.0, at_once=None, rate=7.0),
    ):
        alone = list(load.share(0, 1))
        dealt = [asked for worker in range(3) for asked in load.share(worker, 3)]
        assert sorted(dealt, key=lambda asked: asked.index) == alone and len(alone) > 5
    assert sum(Load(requests=11, seconds=None, at_once=5).places(w, 3) for w in range(3)) == 5


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--at-once=4", "name a server with --base-url"),
        ("--base-url=http://x/v1", "choose a load: --at-once N (closed loop) or --rate X"),
        ("--base-url=ftp://x --at-once=1", "--base-url: expected http://HOST:PORT/v1, got 'ftp"),
        ("--base-url=http://x:y --at-once=1", "--base-url: expected"),
        ("--base-url=http://x --at-once=0", "--at-once: expected a number from 1"),
        ("--base-url=http://x --at-once=x", "argument --at-once: invalid int value: 'x'"),
        ("--base-url=http://x --rate=nan", "--rate: expected a number from 0.001"),
        ("--base-url=http://x --rate=1 --requests=1 --seconds=1", "do not go together"),
        ("--base-url=http://x --rate=1 --prompt-tokens=uniform:9:3", "--prompt-tokens: expected N"),
        ("--base-url=http://x --rate=1 --output-tokens=lognormal:9", "--output-tokens: expected N"),
        ("--base-url=http://x --rate=1 --slo=ttft", "--slo: expected seconds by name"),
        ("--base-url=http://x --rate=1 --slo=speed=1", "--slo: expected seconds by name"),
        ("--base-url=http://x --rate=1 --extra-body={", "--extra-body: not valid JSON"),
        ("--base-url=http://x --rate=1 --extra-body=[1]", "--extra-body: expected a JSON object"),
        ("--base-url=http://x --rate=1 --vanish=2", "--vanish: expected a number from 0 to 1"),
        ("--base-url=http://x --rate=1 --file=nowhere", "nowhere: no such file of prompts"),
        ("--base-url=http://x --rate=1 --plot=x.txt", "--plot x.txt: expected a file name"),
        ("--base-url=http://x --rate=1 --json=nowhere/x", "--json nowhere/x: no such folder"),
        ("--in-process=tiny --rate=1 --server-pid=1", "--server-pid goes with --base-url"),
        ("--in-process=none --rate=1", "unknown pair 'none'"),
        ("--rate=1 --wrong", "unrecognized arguments: --wrong"),
    ],
)
def test_bad_flags(flags: str, said: str, capsys):
    """One line, status 2."""
    try:
        code = main(flags.split())
    except SystemExit as left:  # argparse's
        code = left.code
    (line,) = capsys.readouterr().err.splitlines()
    assert code == 2 and line.startswith("error: ") and said in line


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "holds no prompt"),
        ("{", "line 1: not valid JSON"),
        ('{"text": "x"}', 'line 1: expected an object with either "prompt" or "messages"'),
        ('{"prompt": ""}', "line 1: prompt must be a str that is not empty"),
        ('{"prompt": "x", "max_tokens": 0}', "line 1: max_tokens must be 1 or more, got 0"),
        ('{"messages": [{}]}', 'line 1: "messages" goes with --endpoint chat'),
    ],
)
def test_bad_files(tmp_path: Path, line: str, said: str, capsys):
    (tmp_path / "p.jsonl").write_text(line)
    flags = f"--base-url=http://x --rate=1 --endpoint=completions --file={tmp_path / 'p.jsonl'}"
    assert main(flags.split()) == 2
    (printed,) = capsys.readouterr().err.splitlines()
    assert said in printed


def test_laws_refuse():
    for text in ("0", "-3", "x", "uniform:1", "lognormal:10:9", "lognormal:10:nan", "normal:1:2"):
        with pytest.raises(SteerError, match="--x: expected N, uniform:LOW:HIGH or lognormal"):
            Lengths.parse("--x", text)


class Wire(asyncio.Transport):
    """Takes what is written."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written = bytes(data)


STREAM = b"d\r\ndata: [DONE]\r\n0\r\n\r\n"
ANSWERS = [
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + STREAM,
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"HTTP/1.1 429 No\r\nContent-Length: 12\r\nConnection: close\r\n\r\n0\r\n\r\n0\r\n\r\n1\n",
    b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n",
]


@pytest.mark.parametrize("answer", ANSWERS)
def test_the_end_of_an_answer_is_seen(answer: bytes):
    """However its bytes are cut into reads: at its last byte, and not before."""

    async def ends(*cuts: int) -> None:
        exchange = Exchange()
        exchange.connection_made(Wire())
        over = exchange.ask(b"", Asked(0, "x", 1))
        at = 0
        for cut in (*cuts, len(answer)):
            assert not over.done()
            exchange.data_received(answer[at:cut])
            at = cut
        assert over.result() == ""
        assert exchange.may_be_used_again == (b"close" not in answer)

    async def all_cuts() -> None:
        size = len(answer)
        await ends(*range(1, size))
        for first in range(1, size):
            await ends(first)
            for second in range(max(first + 1, size - 9), size):
                await ends(first, second)

    asyncio.run(all_cuts())

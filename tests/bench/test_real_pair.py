"""``python -m bench.real_pair`` on small random models, and what its tables say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from bench.real_pair import problems, tables
from bench.real_pair.command import main
from bench.real_pair.sources import pair_sources
from bench.stats import wilson
from tests.bench.refusals import refused
from tests.engine.conftest import random_model
from tests.engine.plain_bpe import write_plain_bpe

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}<|im_end|>answer:"


def row(policy: str, right: int, tokens: int, large_tokens: int, **more) -> dict:
    low, high = wilson(right, 40)
    return {
        "policy": policy,
        "n": 40,
        "accuracy": right / 40,
        "ci_low": low,
        "ci_high": high,
        "tokens": tokens,
        "large_tokens": large_tokens,
        "large_token_share": large_tokens / tokens,
        "cut_off": 3,
        "seconds": 61.4,
        "tokens_per_second": 83.06,
        "flops_decode": 0.5,
        "flops_catchup": 0.75,
        "recomputed_share": 0.0,
        "mixed": None,
        **more,
    }


def test_what_mixing_whole_problems_gives():
    """By hand: 40 answers of 100 tokens by the small model, or of 300 by the large one. 10 large
    ones in 40 are half of all tokens."""
    small, large = row("small", 8, 4000, 0), row("large", 32, 12000, 12000)
    assert tables.mixed(row("p", 0, 6000, 3000), small, large) == pytest.approx(
        (30 * 8 + 10 * 32) / 1600
    )
    assert tables.mixed(row("p", 0, 6000, 0), small, large) == small["accuracy"]
    assert tables.mixed(row("p", 0, 6000, 6000), small, large) == large["accuracy"]


def test_tables_say_what_the_rows_do():
    steer = {"tau": 0.5, "signal": "max_prob", "window": "boundary", "calibration_problems": 40}
    policies = [
        row("large", 32, 12000, 12000),
        row("steer", 20, 6000, 3000, mixed=0.35, recomputed_share=0.2, errors=2, **steer),
    ]
    text = tables.report(policies, [row("large", 36, 6000, 6000)])
    line = next(line for line in text.splitlines() if line.startswith("steer "))
    wanted = ["steer", "20 of 40", "0.352 - 0.648", "50.0%", "3", "61", "83.1", "0.500", "0.750"]
    assert line.split("  ")[0] == "steer"
    assert [c.strip() for c in line.split("  ") if c.strip()] == [*wanted, "14.0 of 40"]
    assert "steer: fitted on 40 other problems" in text and "tau 0.5" in text
    assert "steer: 20.0% of its rows were computed again" in text
    assert "steer: 2 of 40 answers ended in an error" in text
    last = text.splitlines()[-1].split("  ")
    assert [c.strip() for c in last if c.strip()] == ["large", "36 of 40", "100.0%", "1.5", "150"]
    assert tables.report([], []) == "no policy was finished"


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("He is missing \\boxed{405} of 950.", True),
        ("The fair costs €950.\n\nSo James is missing **€405**.", True),
        ("405 is half of it.\n\nHe needs 475.", False),
        ("#### 405.0", True),
        ("", False),
    ],
)
def test_who_is_right(text: str, right: bool):
    """Only the final answer counts, whatever numbers stand before it."""
    ((problem,), _) = problems.draw(1, 1)
    assert problem.entry["answer"] == "405"
    assert problems.as_chat([problem]).is_correct(problem, text) is right


def test_a_thousand_may_be_written_with_a_comma():
    (tests, others) = problems.draw(2, 2)
    assert tests[1].entry["answer"] == "1090"
    assert problems.as_chat(tests).is_correct(tests[1], "He placed 1,090 pieces.")
    assert not {p.prompt for p in tests} & {p.prompt for p in others}


def write_model(folder: Path, seed: int, **shape: int) -> Path:
    """Random weights that write letters and a double newline only, varied by the prompt."""
    folder.mkdir()
    special = {"<|im_start|>": True, "<|im_end|>": True, "\n\n": False}
    write_plain_bpe(folder, special, chat_template=TEMPLATE)
    raw = json.loads((folder / "tokenizer.json").read_text())
    ids = raw["model"]["vocab"] | {t["content"]: t["id"] for t in raw["added_tokens"]}
    model = random_model(seed, vocab=max(ids.values()) + 1, **shape)
    model.config.max_position_embeddings = 4096
    written = torch.tensor([ids[token] for token in [*"0123456789", "\n\n"]])
    with torch.no_grad():
        kept = model.lm_head.weight[written].clone()
        model.lm_head.weight.zero_()
        model.lm_head.weight[written] = kept
    model.save_pretrained(folder)
    return folder


def write_pair(folder: Path) -> list[Path]:
    shape = {"layers": 2, "heads": 4, "kv_heads": 2, "ff": 64}
    widths = {"small": 48, "large": 96}
    return [write_model(folder / role, n, hidden=n, **shape) for role, n in widths.items()]


def test_the_report_from_one_end_to_the_other(tmp_path: Path, capsys):
    """Every policy on the same problems, a calibration on others, then answers one by one."""
    small, large = write_pair(tmp_path)
    rows, fitted = tmp_path / "rows.jsonl", tmp_path / "calibration.json"
    flags = ["--problems=3", f"--small={small}", f"--large={large}", f"--json={rows}"]
    flags += ["--policies=steer,random:0.5", f"--save-calibration={fitted}"]
    assert main([*flags, f"--plot={tmp_path / 'plot.png'}"], []) == 0
    out = capsys.readouterr().out
    found = [json.loads(line) for line in rows.read_text().splitlines()]
    assert [(r["part"], r["policy"]) for r in found] == [
        *(("policies", p) for p in ("large", "small", "random:0.5", "steer")),
        *(("one at a time", p) for p in ("large", "small", "random:0.5")),
    ]
    by_policy = {r["policy"]: r for r in found[:4]}
    assert by_policy["large"]["large_token_share"] == 1 and by_policy["large"]["mixed"] is None
    assert by_policy["small"]["large_tokens"] == 0 < by_policy["random:0.5"]["large_tokens"]
    for each in found:
        assert each["n"] == 3 and each["cut_off"] == 3 and each["tokens"] == 3 * problems.MAX_TOKENS
        assert each["models"] == {"small": "small", "large": "large"}
        assert each.keys() >= {"machine", "versions", "commit", "date", "fingerprint"}
        assert "gsm_symbolic, seed 11" in each["problems"]
        assert each["prices"]["loads"] == [1, 64] and each["an_answer"]["time_1"] > 0
        assert (each["money"] == 1) == (each["policy"] == "large")
    alone, together = found[6], by_policy["random:0.5"]
    assert alone["tokens"] == together["tokens"] and len(alone["each_seconds"]) == 3
    assert by_policy["steer"]["tau"] == 0.5 and "fitted on 10 other problems" in out
    assert fitted.is_file() and (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert "time at load 64" in out and "seconds an answer" in out and "The report took" in out


def test_a_pair_without_a_chat_template(tmp_path: Path, capsys):
    small, large = write_pair(tmp_path)
    for folder in (small, large):
        (folder / "tokenizer_config.json").unlink()
    flags = ["--problems=1", f"--small={small}", f"--large={large}"]
    assert "pair custom brings no chat template" in refused(main(flags, []), capsys)


def test_the_page_s_example_runs(tmp_path: Path, capsys):
    """With another pair in the place of the fetched files."""
    page = (Path(__file__).parents[2] / "docs" / "real-pair.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert all(
        f"build/real-pair/{s.file}".replace(size, "{size}") in example
        for s, size in zip(pair_sources(), ("0.5b", "1.5b"), strict=True)
    )
    files = f"files = {[*map(str, write_pair(tmp_path))]}"
    example, count = re.subn(r"^files = .*$", lambda _: files, example, flags=re.MULTILINE)
    assert count == 1
    exec(compile(example, "real-pair.md", "exec"), {})
    assert "tokens by the large model" in capsys.readouterr().out.splitlines()[-1]

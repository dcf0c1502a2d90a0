"""``python -m bench.flops`` on chats, and answers that are cut off."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.flops import main
from bench.table import policies_table
from bench.tasks import arithmetic
from tests.bench.test_flops import read
from tests.engine.test_conversation import NO_SYSTEM, TEMPLATE, chat_pair

COUNT = 30
SAME = ("accuracy", "tau", "flops_decode", "flops_catchup", "rows", "cut_off", "large_step_share")


def pair(folder: Path, template: str = TEMPLATE) -> list[str]:
    return ["--model-pair=custom", *chat_pair(folder, template)[1:]]


def data(path: Path, begin: int = 0, end: str = "?\n\n") -> Path:
    """Problems of the embedded task, less the first characters and with another end."""
    problems = arithmetic.problems("test", COUNT)
    raws = [(p.prompt.removesuffix("?\n\n")[begin:], p.answer) for p in problems]
    lines = [json.dumps({"prompt": raw + end, "answer": answer}) for raw, answer in raws]
    path.write_text("\n".join(lines))
    return path


def test_a_chat_is_the_text_that_its_template_writes(tmp_path: Path):
    """Every policy and its calibration do the same as on that text; rows say what was set."""
    folders, found = pair(tmp_path), {}
    flags = ["--chat", "--instruction=?", "--system="]
    for name, end, more in (("text", "?\n\n", []), ("chat", "", flags)):
        path = data(tmp_path / f"{name}.jsonl", end=end)
        arguments = [*folders, f"--dataset={path}", "--max-tokens=80", *more]
        rows = tmp_path / f"{name}-rows.jsonl"
        assert main([*arguments, "--policies=small,large,steer", f"--json={rows}"]) == 0
        found[name] = read(rows)
    assert found["text"]["large"]["accuracy"] > 0.8
    for policy, text in found["text"].items():
        chat = found["chat"][policy]
        assert {f: text.get(f) for f in SAME} == {f: chat.get(f) for f in SAME}
        assert (chat["chat"], chat["instruction"], chat["system"]) == (True, "?", "")
        assert not text.keys() & {"chat", "instruction", "system"}


def test_the_written_prompt_counts_for_the_context(tmp_path: Path, capsys):
    """A long system's message leaves no room for the answer: said before anything runs."""
    folders = pair(tmp_path)
    arguments = [*folders, f"--dataset={data(tmp_path / 'd.jsonl', end='?')}", "--max-tokens=100"]
    assert main([*arguments, "--chat", "--policies=large"]) == 0
    capsys.readouterr()
    assert main([*arguments, "--chat", f"--system={'1+' * 150}", "--policies=large"]) == 2
    tokens = 300 + len(arithmetic.problems("test", 1)[0].prompt.removesuffix("\n\n")) + 1
    assert f"d.jsonl:1: the prompt's {tokens} tokens and --max-tokens" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("template", "flags", "message"),
    [
        (TEMPLATE, ["--system=x"], "--system goes with --chat"),
        (TEMPLATE, ["--instruction="], "--instruction is empty"),
        (NO_SYSTEM, ["--chat", "--system=x"], "error: --system: the chat template refuses these"),
        ("{{ 1 / 0 }}", ["--chat"], "d.jsonl:1: the chat template fails on these messages"),
    ],
)
def test_bad_settings_get_one_line(
    tmp_path: Path, capsys, template: str, flags: list[str], message: str
):
    assert main([*pair(tmp_path, template), f"--dataset={data(tmp_path / 'd.jsonl')}", *flags]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("error:") == error.count("\n") == 1


@pytest.mark.parametrize("flag", ["--chat", "--system=x", "--instruction=x"])
@pytest.mark.parametrize("more", [[], ["--model-pair=qwen-1.5b/qwen-7b"], ["--all", "--report=r"]])
def test_chats_need_a_dataset(flag: str, more: list[str], capsys):
    assert main([flag, *more]) == 2
    assert f"error: {flag.partition('=')[0]} goes with --dataset\n" == capsys.readouterr().err


@pytest.mark.parametrize(("limit", "cut"), [(12, True), (80, False)])
def test_answers_cut_off_are_counted(tmp_path: Path, capsys, limit: int, cut: bool):
    path, rows, traces = data(tmp_path / "d.jsonl"), tmp_path / "rows.jsonl", tmp_path / "traces"
    files = [f"--json={rows}", f"--save-traces={traces}"]
    assert main([f"--dataset={path}", f"--max-tokens={limit}", "--policies=large", *files]) == 0
    out = capsys.readouterr().out
    row = read(rows)["large"]
    lines = [json.loads(line) for line in (traces / "large.jsonl").read_text().splitlines()]
    ends = [line["finish_reason"] for line in lines if line["type"] == "request"]
    assert row["cut_off"] == ends.count("length") and (row["cut_off"] > 0) == cut
    note = (
        f"{row['cut_off']} of 24 answers of policy large were cut off at --max-tokens {limit} and"
    )
    assert (note in out) == cut and ("cut off" in out.splitlines()[0]) == cut
    assert not cut or f" {row['cut_off'] / 24:.1%} " in out


def test_the_table_reads_rows_without_the_field(tmp_path: Path):
    rows = tmp_path / "rows.jsonl"
    assert main(["--problems=5", "--policies=small,large", f"--json={rows}"]) == 0
    old = [{k: v for k, v in row.items() if k != "cut_off"} for row in read(rows).values()]
    assert "cut off" not in policies_table(old).splitlines()[0]
    table = policies_table([*old, old[0] | {"cut_off": old[0]["n"]}]).splitlines()
    assert "cut off" in table[0] and " 0.0% " in table[2] and " 100.0% " in table[-1]

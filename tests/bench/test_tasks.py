"""The embedded task: problems, traces, splits, checkers."""

from __future__ import annotations

import pytest

from bench import dataset
from bench.tasks import arithmetic
from bench.tasks.tokenizer import ALPHABET, build_tokenizer
from engine import SteerError


def solve(prompt: str) -> str:
    """Read the prompt from left to right, with nothing of the task's own code."""
    text = prompt.strip().rstrip("?")
    value, rest = int(text[:2]), text[2:]
    while rest:
        sign, digits = rest[0], ""
        rest = rest[1:]
        while rest and rest[0].isdigit():
            digits, rest = digits + rest[0], rest[1:]
        operand = int(digits)
        value = {"+": value + operand, "-": value - operand, "*": value * operand}[sign] % 100
    return f"{value:02d}"


def test_answers_and_traces_are_right():
    for problem in arithmetic.problems("test", 300, mix="hard"):
        assert problem.answer == problem.steps[-1] == solve(problem.prompt)
        assert arithmetic.is_correct(problem, problem.trace)
        assert not arithmetic.is_correct(problem, problem.trace[:-1] + "x")
        for before, after in zip(problem.steps, problem.steps[1:], strict=False):
            assert solve(before) == after[:2]


def test_splits_are_disjoint_and_repeatable():
    splits = {
        split: {p.prompt for p in arithmetic.problems(split, 400)} for split in arithmetic.SPLITS
    }
    assert len(set.union(*splits.values())) == 1200
    assert all(arithmetic.split_of(p) == split for split, found in splits.items() for p in found)
    assert arithmetic.problems("test", 50, seed=3) == arithmetic.problems("test", 50, seed=3)
    assert arithmetic.problems("test", 50, seed=3) != arithmetic.problems("test", 50, seed=4)


def test_no_multiplier_can_hide_a_wrong_digit():
    """Coprime to 100: two different values stay different."""
    for operand in (*arithmetic._MEDIUM, *arithmetic._HARD):
        assert len({value * operand % 100 for value in range(100)}) == 100


def test_mixes_weigh_the_kinds():
    problems = arithmetic.problems("test", 1000, mix="light")
    kinds = [k for p in problems for k in p.kinds[1:]]
    assert kinds.count("easy") / len(kinds) == pytest.approx(0.7, abs=0.03)
    assert kinds.count("hard") / len(kinds) == pytest.approx(0.15, abs=0.03)


def test_tokenizer_round_trip():
    tokenizer = build_tokenizer()
    for problem in arithmetic.problems("test", 20):
        text = problem.prompt + problem.trace
        ids = tokenizer.encode(text + arithmetic.EOS).ids
        assert tokenizer.decode(ids) == text
        assert ids[-1] == ALPHABET.index(arithmetic.EOS)


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        ("so it is \\boxed{42}.", "42", True),
        ("12 and then 1,234", "1234", True),
        ("the answer is Paris", "the answer is paris", True),
        ("it is 41", "42", False),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}", True),
        ("so 18.0", "18", True),
        ("... #### 18", "18", True),
        ("18", "a, b and then #### 18", True),
        ("take 9-7", "7", True),
        ("it is -7", "7", False),
        ("The answer is B", "B", True),
        ("", "42", False),
        ("so it is \\boxed{\\frac{2}{4}}", "\\frac{1}{2}", True),
        ("\\boxed{(x+1)^2}", "x^2+2x+1", True),
        ("\\boxed{\\sqrt{18}}", "3\\sqrt{2}", True),
        ("\\boxed{\\sqrt{19}}", "3\\sqrt{2}", False),
        ("\\boxed{\\frac{36}{2}}", "18", True),
        ("\\boxed{(2, 1)}", "(1, 2)", False),
        ("Liam has **$1,234** left.", "1234", True),
        ("\\boxed{2^5}", "32", True),
        ("\\boxed{3\\sqrt{16}}", "12", True),
        ("#### 2^5", "32", True),
        ("\\boxed{18\\text{ of }20}", "18", False),
        ("\\boxed{3, 4}", "4", False),
        ("\\boxed{7:30}", "30", False),
        ("\\boxed{1,23}", "123", False),
        ("at 7:30", "30", False),
        ("it is 1,23", "123", False),
        ("#### 18 of 20", "18", False),
        ("#### Conclusion\nShe leaves at 7:30.", "7", False),
        ("#### Conclusion\nShe leaves at 7:30.", "30", False),
        ("#### 2^5\nThat is all.", "32", True),
    ],
)
def test_answers_from_free_text(text: str, answer: str, right: bool):
    assert dataset.is_correct(dataset.FileProblem("?", answer), text) is right


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", r"d\.jsonl:2: not JSON"),
        ("[1]", r"d\.jsonl:2: expected \{\"prompt\""),
        ('{"prompt": "", "answer": "1"}', r"d\.jsonl:2: expected"),
        ('{"prompt": "1+1?"}', r"d\.jsonl:2: expected"),
        ('{"prompt": "1+1?", "answer": " "}', r"d\.jsonl:2: the answer is empty"),
    ],
)
def test_a_bad_dataset_line_is_named(tmp_path, line: str, message: str):
    path = tmp_path / "d.jsonl"
    path.write_text('{"prompt": "1+1?", "answer": "2"}\n' + line + "\n")
    with pytest.raises(SteerError, match=message):
        dataset.read_problems(path)


def test_empty_and_missing_datasets(tmp_path):
    with pytest.raises(SteerError, match="no such dataset file"):
        dataset.read_problems(tmp_path / "d.jsonl")
    (tmp_path / "d.jsonl").write_text("\n")
    with pytest.raises(SteerError, match="no problem in this file"):
        dataset.read_problems(tmp_path / "d.jsonl")


def test_line_separators_inside_a_string_are_text(tmp_path):
    """JSON allows them unescaped; a byte order mark does no harm either."""
    path = tmp_path / "d.jsonl"
    path.write_text('\ufeff{"prompt": "a\u2028b", "answer": 2}\n', encoding="utf-8")
    (problem,) = dataset.read_problems(path)
    assert problem.prompt == "a\u2028b" and problem.answer == "2"

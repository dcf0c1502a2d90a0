"""Three domains: generators, solvers, checkers, splits; reasoning-gym's scorer beside our own."""

from __future__ import annotations

import random

import pytest

from bench.tasks import gym, hops, planning
from bench.tasks.problem import DELIMITER, EOS, EQUALS, FULL_STOP, SPLITS, STYLES, Problem, split_of
from bench.tasks.registry import TASKS
from bench.tasks.tokenizer import ALPHABET, build_tokenizer
from engine import SteerError

EVERY = [(name, style) for name in TASKS for style in STYLES]


def spoiled(problem: Problem, step: int, rng: random.Random) -> str:
    """The gold trace with the result that one step shows exchanged for another of its kind."""
    steps = list(problem.steps)
    old, end = steps[step].rstrip(FULL_STOP), steps[step].endswith(FULL_STOP) * FULL_STOP
    place = len(old) - 1 if old[-1].islower() or old[-1] == "!" or EQUALS in old else 0
    other = [c for c in ("0123456789" if old[place].isdigit() else planning.TOWNS) if c not in old]
    steps[step] = old[:place] + rng.choice(other) + old[place + 1 :] + end
    return DELIMITER.join(steps)


@pytest.mark.parametrize(("name", "style"), EVERY)
def test_gold_traces_pass_and_wrong_ones_fail_at_their_step(name: str, style: str):
    task, rng = TASKS[name], random.Random(0)
    for problem in task.problems("test", 150, mix="hard", style=style):
        assert task.is_correct(problem, problem.trace)
        assert task.first_error(problem, problem.trace) is None
        step = rng.randrange(len(problem.steps))
        assert task.first_error(problem, spoiled(problem, step, rng)) == step
        assert task.first_error(problem, DELIMITER.join(problem.steps[:-1])) is not None
        assert task.first_error(problem, problem.trace + DELIMITER + problem.steps[-1]) is not None
        assert not task.is_correct(problem, spoiled(problem, len(problem.steps) - 1, rng))
        for text in ("", DELIMITER, EQUALS, "nonsense"):
            assert not task.is_correct(problem, text) and task.first_error(problem, text) == 0


@pytest.mark.parametrize(("name", "style"), EVERY)
def test_a_kind_for_every_step_and_an_answer_at_the_end(name: str, style: str):
    task = TASKS[name]
    problems = task.problems("calibration", 300, style=style)
    for problem in problems:
        assert len(problem.kinds) == len(problem.steps)
        assert problem.steps[-1].endswith(problem.answer[-1]) or problem.steps[-1].endswith("!")
    steps = [pair for p in problems for pair in zip(p.kinds, p.steps, strict=True)]
    kinds = [k for k, step in steps if k != "copy" and not step.endswith("!")]
    assert {*kinds} == {*task.kinds}
    share = kinds.count("hard") / len(kinds)
    assert share == pytest.approx(task.mixes["mixed"][2], abs=0.08)
    varied = sum(len({*p.kinds} - {"copy"}) > 1 for p in problems)
    assert varied > 0.7 * len(problems)


@pytest.mark.parametrize("name", TASKS)
def test_splits_are_disjoint_and_seeded(name: str):
    task = TASKS[name]
    splits = {split: {p.prompt for p in task.problems(split, 300)} for split in SPLITS}
    assert len(set.union(*splits.values())) == 900
    assert all(split_of(p) == split for split, found in splits.items() for p in found)
    assert task.problems("test", 40, seed=3) == task.problems("test", 40, seed=3)
    assert task.problems("test", 40, seed=3) != task.problems("test", 40, seed=4)
    with pytest.raises(ValueError, match="unknown mix"):
        task.problems("test", 1, mix="bitter")


def test_hops_need_what_their_kind_says():
    """Each step is re-read from the facts: as asked, backwards, or two put together."""
    for problem in TASKS["hops"].problems("test", 100, mix="hard"):
        facts, question = problem.prompt.split(hops.QUESTION)
        for before, after in zip(problem.steps, problem.steps[1:], strict=False):
            person, relation, reached = before[0], before[2:].rstrip(FULL_STOP), after[0]
            if relation == ">>":
                between = facts[facts.index(f"{person}>") + 2]
                assert f"{between}>{reached}" in facts and between != reached != person
            else:
                back = relation == "<"
                asked = f"{reached}>{person}" if back else f"{person}{relation}{reached}"
                assert asked in facts
        distractors = len(facts) // 3 - len({s[0] for s in problem.steps})
        assert distractors > 3 and question[0] == problem.steps[0][0]


def test_routes_are_unique_and_hard_moves_pass_a_dead_end():
    for problem in TASKS["planning"].problems("test", 150, mix="hard"):
        route = planning.solve(problem.prompt)
        assert " ".join(route) == problem.answer
        roads = planning._ROADS.findall(problem.prompt)
        for here, there, kind in zip(route, route[1:], problem.kinds, strict=False):
            others = [b for a, b in roads if a == here and b != there]
            ends = [b for b in others if all(a != b for a, _ in roads)]
            assert len(others) == (kind != "easy")
            assert kind != "hard" or ends == others
            if others:
                wrong = [*route[1 : route.index(here) + 1], others[0], "!"]
                error = planning.first_error(problem, (FULL_STOP + DELIMITER).join(wrong))
                assert error == route.index(here)


def test_one_tokenizer_for_all_tasks_and_styles():
    tokenizer = build_tokenizer()
    for name, style in EVERY:
        for problem in TASKS[name].problems("test", 20, style=style):
            text = problem.prompt + problem.trace
            ids = tokenizer.encode(text + EOS).ids
            assert tokenizer.decode(ids) == text and ids[-1] == ALPHABET.index(EOS)
            answer = len(tokenizer.encode(problem.trace + EOS).ids)
            assert answer < TASKS[name].max_tokens[style]


def test_reasoning_gym_scores_as_our_checker_does():
    """Stars of reasoning-gym, in the pair's words: both say the same of right and wrong routes."""
    source = "reasoning-gym:path_star,degree=3,max_path_length=4,node_range=500"
    for problem in gym.read_problems(source, 60, pair=True):
        route = planning.solve(problem.prompt)
        ours = Problem(problem.prompt, tuple(route[1:]), (), " ".join(route))
        join = (FULL_STOP + DELIMITER).join
        good, other = join([*route[1:], "!"]), join([*route[1:-1], route[0], "!"])
        assert gym.is_correct(problem, good) and planning.is_correct(ours, good)
        assert not gym.is_correct(problem, other) and not planning.is_correct(ours, other)
        for cut in range(len(route) - 1):
            text = join([*route[1 : cut + 1], "!"])
            assert not gym.is_correct(problem, text) and not planning.is_correct(ours, text)


def test_reasoning_gym_tasks_as_they_are():
    (first, *_) = found = gym.read_problems("reasoning-gym:chain_sum,max_terms=3", 30, seed=5)
    assert len({p.prompt for p in found}) == 30
    assert found == found and first.prompt == first.entry["question"]
    again = gym.read_problems("reasoning-gym:chain_sum,max_terms=3", 30, seed=5)
    assert [p.prompt for p in again] == [p.prompt for p in found]
    answer = first.entry["answer"]
    assert gym.is_correct(first, f"adding up\n\n{answer}")
    assert gym.is_correct(first, f"so <answer> {answer} </answer>.")
    assert not gym.is_correct(first, f"<answer>{int(answer) + 1}</answer>\n{answer}")
    tower = gym.read_problems("reasoning-gym:tower_of_hanoi,max_disks=4", 4)[0]
    assert gym.is_correct(tower, tower.entry["answer"])
    assert not gym.is_correct(tower, tower.entry["answer"].rpartition("\n")[0])


@pytest.mark.parametrize(
    ("form", "right"),
    [
        ("We start with 3 facts.\n\nTherefore, Liam has **${}** left.", True),
        ("\\boxed{{{}}}", True),
        ("#### {}", True),
        ("The answer is {} dollars.", True),
        ("<answer>£{}</answer>", True),
        ("{} km/h", True),
        ("{}.00", True),
        ("<answer>1</answer>\n{}", False),
        ("{} of 20", False),
        ("{} at first.\n\nIn the end: 20", False),
        ("-{}", False),
        ("{}:30", False),
        ("{} million", False),
        ("", False),
    ],
)
@pytest.mark.parametrize("name", ["gsm_symbolic", "gcd", "products", "prime_factorization"])
def test_a_gym_answer_that_is_a_number_is_read_as_one(name: str, form: str, right: bool):
    """Thousands commas too; some scorers alone would take the first number of the text."""
    for problem in gym.read_problems(f"reasoning-gym:{name}", 20):
        answer = problem.entry["answer"]
        if answer.isdigit() and answer not in ("0", "1", "20"):
            assert gym.is_correct(problem, form.format(f"{int(answer):,}")) is right


def test_a_fraction_that_is_not_simplified_is_wrong():
    source = "reasoning-gym:fraction_simplification,min_factor=2"
    for problem in gym.read_problems(source, 20):
        asked = problem.prompt.removeprefix("Simplify the fraction ").partition(" to its ")[0]
        answer = problem.entry["answer"]
        assert gym.is_correct(problem, answer) and not gym.is_correct(problem, asked)
        assert gym.is_correct(problem, f"I divide by the greatest factor.\n\n{answer}")
        assert not gym.is_correct(problem, f"<answer>{asked}</answer>")


@pytest.mark.parametrize("text", ["7" * 400 + ".5", "7" * 400 + "/3", "9" * 4200 + "e200"])
def test_a_number_too_long_to_be_written_is_wrong(text: str):
    (problem,) = gym.read_problems("reasoning-gym:gsm_symbolic", 1)  # the answer is positive
    assert not gym.is_correct(problem, text)


def test_a_scorer_decides_what_is_near_enough():
    problem = gym.read_problems("reasoning-gym:power_function", 1)[0]
    exact = float(problem.entry["answer"])
    assert gym.is_correct(problem, f"so it is about **{exact:.2e}**")
    assert not gym.is_correct(problem, f"so it is about **{2 * exact:.2e}**")


def test_an_answer_that_a_scorer_fails_on_is_wrong():
    """The factors of a number, answered in words."""
    problems = gym.read_problems("reasoning-gym:prime_factorization", 20)
    problem = next(p for p in problems if not p.entry["answer"].isdigit())
    assert gym.is_correct(problem, problem.entry["answer"])
    assert gym.is_correct(problem, f"In short:\n\n{problem.entry['answer']}")
    assert not gym.is_correct(problem, "I do not know")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("reasoning-gym:chain_some", "reasoning-gym has no task 'chain_some'"),
        ("reasoning-gym:chain_sum,terms", "expected setting=value, got 'terms'"),
        ("reasoning-gym:chain_sum,terms=3", "unexpected keyword argument 'terms'"),
        ("reasoning-gym:chain_sum,min_terms=9", "max_terms must be >= min_terms"),
        ("reasoning-gym:tower_of_hanoi,max_disks=3,max_pegs=3", "only 6 distinct problems"),
    ],
)
def test_bad_sources_get_one_line(source: str, message: str):
    with pytest.raises(SteerError, match=message) as caught:
        gym.read_problems(source, 50)
    assert "\n" not in str(caught.value)

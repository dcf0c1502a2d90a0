"""The rule of a batch: 12 problems, 4 steps, worked by hand; then what so few cannot show."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from engine import SteerError
from engine.routing.batch_mixture import LastStep, Marks, decide_batch, fit_steps, judge
from engine.routing.mixture import Mixture, fit_mixture, two_means

S, L = "small", "large"
GIVEN_UP = "small for the rest"

# After step 0, which the small model wrote for all. Problem 0 has no maths token: it reads as the
# lowest score, 10. The two groups are 10 10 10 12 12 and 20 20 20 22 22 22 22, so far apart that
# each value belongs to one with a certainty of 1: weights 5/12 and 7/12, means 10.8 and 21.14,
# deviations near 1. P(low) is 1 in the first group: the large model writes these steps again.
STEP_0 = {
    0: (S, None, L),
    1: (S, 10, L),
    2: (S, 10, L),
    3: (S, 12, L),
    4: (S, 12, L),
    5: (S, 20, S),
    6: (S, 20, S),
    7: (S, 20, S),
    8: (S, 22, S),
    9: (S, 22, S),
    10: (S, 22, S),
    11: (S, 22, S),
}
# Step 0 again, as it stands now: who writes step 1? The large model's own steps, 40 42 44 46 48,
# start as 40 42 | 44 46 48. Each pass of EM draws the lower one in: it ends at weights .371 and
# .629, means 40.96 and 45.79, deviations 1.05 and 1.85. Bayes at 42: .371 * N(42; 40.96, 1.05) =
# .371 * .2328 = .0863 against .629 * N(42; 45.79, 1.85) = .629 * .0263 = .0166: P = .839. At 44:
# .371 * .00576 = .00214 against .629 * .1353 = .0851: P = .025. 40 lies below the lower mean, where
# P is that of the mean: .371 * .380 = .141 against .629 * .00702 = .0044: P = .970.
# The small model's steps that were kept are fitted anew: now 20 20 20 is the lower group.
STEP_0_AGAIN = {
    0: (L, 40, GIVEN_UP),  # .970 > .9
    1: (L, 42, L),  # .839, in (.4, .9]
    2: (L, 44, S),  # .025
    3: (L, 46, S),
    4: (L, 48, S),
    5: (S, 20, L),
    6: (S, 20, L),
    7: (S, 20, L),
    8: (S, 22, S),
    9: (S, 22, S),
    10: (S, 22, S),
    11: (S, 22, S),
}
# After step 1. The small model's groups are -3 -1 and 9 9 10 11 11: a logit that is not positive
# reads as unsure. The large model's four steps are equal, so there are no two kinds: it goes on.
STEP_1 = {
    1: (L, 40, L),
    2: (S, -3, L),
    3: (S, -1, L),
    4: (S, 10, S),
    5: (L, 40, L),
    6: (L, 40, L),
    7: (L, 40, L),
    8: (S, 9, S),
    9: (S, 9, S),
    10: (S, 11, S),
    11: (S, 11, S),
}
# After step 2. Of the large model's 40 40 42 42 44 400 the quartiles are 40.5 and 43.5: 400 is more
# than 5 * 3 above and takes no part in the fit, or all others would be of the lower group. Likewise
# 10 among the small model's 10 20 20 21 21: the quartiles are 20 and 21, 10 is below 15. What takes
# no part in the fit is judged by it.
STEP_2 = {
    1: (L, 40, GIVEN_UP),
    2: (L, 40, GIVEN_UP),
    3: (L, 42, S),
    4: (S, 10, L),
    5: (L, 42, S),
    6: (L, 44, S),
    7: (L, 400, S),
    8: (S, 20, L),
    9: (S, 21, S),
    10: (S, 20, L),
    11: (S, 21, S),
}
# After step 3: nine are left, fewer than ten, and the large model writes them all.
STEP_3 = {
    3: (S, 10, L),
    4: (L, 48, L),
    5: (S, 20, L),
    6: (S, 20, L),
    7: (S, 20, L),
    8: (L, 40, L),
    9: (S, 20, L),
    10: (L, 40, L),
    11: (S, 20, L),
}
COLUMNS = [STEP_0, STEP_0_AGAIN, STEP_1, STEP_2, STEP_3]


def decided(column: dict[int, tuple[str, float | None, str]]) -> dict[int, str]:
    """The decisions on a column of the table, in its words."""
    answers = decide_batch([LastStep(writer, score) for writer, score, _ in column.values()])
    words = [GIVEN_UP if answer.rest else answer.model for answer in answers]
    return dict(zip(column, words, strict=True))


@pytest.mark.parametrize("number", range(5))
def test_worked_by_hand(number: int):
    column = COLUMNS[number]
    assert decided(column) == {problem: expected for problem, (_, _, expected) in column.items()}


def test_the_table_is_one_run():
    """Each step's writers are those that were decided; a problem that was given up is gone."""
    for before, after in pairwise(COLUMNS):
        asked = {problem: want for problem, (_, _, want) in before.items() if want != GIVEN_UP}
        assert {problem: writer for problem, (writer, _, _) in after.items()} == asked


def test_the_mixture_of_the_comment():
    """EM stands still at the numbers above, and Bayes gives the P(low) above."""
    mixture = fit_steps([40, 42, 44, 46, 48])
    assert mixture is not None
    assert mixture.weights == pytest.approx((0.371, 0.629), abs=1e-3)
    assert mixture.means == pytest.approx((40.96, 45.79), abs=0.01)
    assert mixture.deviations == pytest.approx((1.05, 1.85), abs=0.01)

    def low(value: float) -> float:
        one, other = (
            w / s * math.exp(-(((value - m) / s) ** 2) / 2)
            for w, m, s in zip((0.371, 0.629), (40.96, 45.79), (1.05, 1.85), strict=True)
        )
        return one / (one + other)

    for value, expected in ((40.96, 0.970), (42, 0.839), (44, 0.025)):
        assert low(value) == pytest.approx(expected, abs=2e-3)
        assert 1 - mixture.posterior(value) == pytest.approx(expected, abs=2e-3)
    assert mixture.posterior(40) == mixture.posterior(-1e300) == mixture.posterior(mixture.means[0])


def test_nearly_all_of_one_kind():
    """A weight above .99 needs more than 100 values: 1 of 150 says nothing, 3 of 150 do."""
    one, three = [18] + [20] * 149, [18] * 3 + [20] * 147
    answers = decide_batch([LastStep(S, score) for score in one])
    assert {answer.model for answer in answers} == {L}
    assert {answer.reason for answer in answers} == {"the small model's steps are all of one kind"}
    answers = decide_batch([LastStep(S, score) for score in three])
    assert [answer.model for answer in answers] == [L] * 3 + [S] * 147


def test_ten_are_enough():
    steps = [LastStep(S, 10), *[LastStep(S, 20 + i) for i in range(9)]]
    first, *others = decide_batch(steps)
    assert first.model == L and S in {answer.model for answer in others}
    nine = decide_batch(steps[:9])
    assert {answer.model for answer in nine} == {L}
    assert nine[0].reason == "fewer than 10 requests at this step: 9"
    assert decide_batch([]) == []


def test_without_any_maths_token_the_large_model_writes():
    steps = [LastStep(S, None)] * 6 + [LastStep(L, None)] * 6
    assert {answer.model for answer in decide_batch(steps)} == {L}
    mixture = Mixture((0.5, 0.5), (0.0, 10.0), (1.0, 1.0))
    assert judge(S, None, mixture).model == L
    assert judge(L, None, mixture).rest


def test_the_other_model_plays_no_part():
    """Scores of the two models are on scales of their own."""
    own = [LastStep(S, score) for score in (1, 2, 1, 2, 9, 8, 9, 8)]
    for shift in (0, 1000):
        other = [LastStep(L, shift + score) for score in (1, 2, 8, 9)]
        models = [answer.model for answer in decide_batch(own + other)]
        assert models == [L] * 4 + [S] * 4 + [S, S, S, S]
        assert [a.rest for a in decide_batch(own + other)[8:]] == [True, True, False, False]


def test_thresholds_are_passed_not_reached():
    mixture = Mixture((0.5, 0.5), (0.0, 10.0), (1.0, 1.0))
    half = Marks(doubtful=0.5, hopeless=0.5)
    assert judge(S, 5.0, mixture, half).model == judge(L, 5.0, mixture, half).model == S
    assert not judge(L, 5.0, mixture, half).rest
    assert judge(S, 5.0, mixture).model == judge(L, 5.0, mixture).model == L
    assert judge(L, 5.0, mixture).posterior == pytest.approx(0.5)


@pytest.mark.parametrize(
    "wrong", [{"doubtful": 1.5}, {"doubtful": 0.95}, {"hopeless": math.nan}, {"most_weight": 0.2}]
)
def test_marks_out_of_range(wrong: dict[str, float]):
    with pytest.raises(SteerError, match=r"marks must be in \[0, 1\]|most_weight must be in"):
        Marks(**wrong)


def test_two_means_is_the_best_of_all_splits():
    values = [3.0, 1.0, 1.0, 7.0, 6.5, 3.5, 9.0]

    def within(split: float) -> float:
        groups = [v for v in values if v <= split], [v for v in values if v > split]
        means = [sum(group) / len(group) for group in groups]
        return sum((v - m) ** 2 for group, m in zip(groups, means, strict=True) for v in group)

    assert two_means(values) == min(sorted(set(values))[:-1], key=within)
    for same in ([], [2.0], [2.0, 2.0]):
        with pytest.raises(SteerError, match="all values are equal"):
            two_means(same)


def test_the_usual_fit_is_as_strict_as_before():
    """What a batch may do with few values, a calibration may not."""
    with pytest.raises(SteerError, match="at least 8 finite values, got 7"):
        fit_mixture([1, 2, 3, 4, 5, 6, 7])
    with pytest.raises(SteerError, match="the mixture collapsed: all 12 values"):
        fit_mixture([0.0, *[20 + i / 10 for i in range(11)]])

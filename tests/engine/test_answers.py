"""What a free text gives as its answer: numbers as people and models write them."""

from __future__ import annotations

import time
from fractions import Fraction

import pytest

from engine.answers import agree, final_number, matches

RIGHT = [
    # units
    ("18", "18 dollars"),
    ("18", "18 km/h"),
    ("18", "18km/h"),
    ("18", "12 apples and 6 pears make 18 pieces of fruit."),
    ("18", "an 18-year-old"),
    ("18", "18°C"),
    ("18", "18\u202fkm"),
    ("18", "The area is 18 m^2."),
    ("18", "The area is 18 m2."),
    ("18", "18m^2"),
    ("3.5", "3.5%"),
    ("3.5", "so it grows by 3.5 %."),
    ("3.5", "\\boxed{3.5\\%}"),
    # thousands
    ("1234", "1,234"),
    ("1234", "She has 1,234."),
    ("1,234", "1234"),
    ("1234567.5", "1,234,567.50 people"),
    ("1234", "\\boxed{1{,}234}"),
    ("1234", "\\boxed{1\\,234}"),
    ("1234", "1\u202f234 people"),
    ("2000000", "about 2 million people"),
    ("1500", "1.5k"),
    ("2000000", "$2 Million"),
    ("2000000", "The answer is 2 MILLION."),
    ("2000000", "a 2-million city"),
    ("2000", "$2K"),
    ("-2000", "-$2k"),
    ("2000000", "£2M"),
    ("1500000000", "$1.5B"),
    ("1500000000", "$1.5 B"),
    ("2", "2K"),
    ("2", "2 B"),
    ("2", "2m"),
    # money
    ("18", "$18"),
    ("18.5", "€18.50"),
    ("18", "18 €"),
    ("18", "18€"),
    ("18", "US$18"),
    ("18", "\\$18"),
    ("$18", "18"),
    ("-18", "-$18"),
    ("-18", "$-18"),
    # marks
    ("1234", "He had 2,000.\n\nTherefore, Liam has **$1,234** left."),
    ("1234", "Therefore, Liam has **$1,234** left of his 2,000 dollars."),
    ("18", "so 20\n\n\\boxed{18}\n\nThat is 2 less than 20."),
    ("18", "\\boxed{18 \\text{ km/h}}"),
    ("18", "\\boxed{18 \\text{ m}^2}"),
    ("18", "18 \\text{ m}^{2}"),
    ("18", "\\boxed{x = 3 \\cdot 6 = 18}"),
    ("0.75", "\\boxed{\\dfrac{3}{4}}"),
    ("1234", "\\boxed{1,000 + 234 = 1,234}"),
    ("1234", "\\boxed{1{,}000\\,\\text{m} = 1{,}234}"),
    ("18", "\\boxed{2x = 18}"),
    ("18", "\\boxed{18 m}"),
    ("18", "\\boxed{18m^2}"),
    ("18", "\\boxed{18\\ \\mathrm{m/s}}"),
    ("18", "\\boxed{\\approx 18 \\quad \\textit{apples}}"),
    ("18", "\\boxed{18^\\circ}"),
    ("18", "\\boxed{\\$18}"),
    ("18", "<answer>18 a day</answer>"),
    ("18", "3*6\n#### 18"),
    ("18", "#### 18\n\nQuestion: What is 5 + 5?"),
    ("18", "#### Step 3: add 4\n\n14 + 4 = 18"),
    ("18", "#### 1. Add\n\n14 + 4 = 18"),
    ("18", "#### 1: Add the prices\n\n14 + 4\n\n**Answer: 18**"),
    ("18", "#### 1st day\n\n14 + 4\n\nThe answer is 18."),
    ("18", "#### 2 children\n\n14 + 4 is **18**."),
    ("18", "#### 2 children and a dog\n\nThe answer is 18.\n\nNone is left."),
    ("18", "3*6\n#### 18 dollars"),
    ("18", "3*6\n#### **18 dollars.**\n\nNone is left."),
    ("18", "3*6\n#### 18 square meters"),
    ("18", "3*6\n#### 14 + 4 = 18 (dollars)"),
    ("18", "#### $18\n\nQuestion: What is 5 + 5?"),
    ("18", "<answer>18 dollars</answer>, not 20"),
    ("18", "<answer>$\\boxed{18}$</answer>"),
    ("18", "The answer is 18 dollars."),
    ("18", "The answer is 18, which is 2 less than 20."),
    ("18", "The answer is 18. I checked it 2 times."),
    ("18", "The answer is 3 * 6 = 18 dollars."),
    ("18", "The answer is 18 dollars for 3 books."),
    ("18", "The answer is 18 apples per child, from 2 baskets."),
    ("2/3", "The answer is $\\frac{2}{3}$.\n\nI used 2 facts."),
    ("-2/3", "The answer is -$\\frac{2}{3}$.\n\nI used 2 facts."),
    ("18", "The answer is $ 18 $.\n\nI used 2 facts."),
    ("18", "**Tom spent $18** on 3 books."),
    ("18", "**Tom spent $18.** It was for 3 books."),
    ("18", "**Step 3:** 18"),
    ("18", "**In step 3** it is 18"),
    ("18", "**This is step 3:** 18"),
    ("18", "**All of the 3 friends** pay 18"),
    ("18", "She has 18 on the 1st, not on the 22nd."),
    ("18", "#### 1st\n\nThe answer is 18."),
    ("1/3", "He eats 1/3rd"),
    ("18", "an 18\u2011year\u2010old"),
    ("-18", "It is \u201118"),
    ("18", "Answer: 18\n\nI used 2 facts."),
    ("18", "**Answer:** 18 apples"),
    ("18", "**Final answer: $18.**"),
    ("18", "The final answer is:\n\n$$18$$\n\nNothing of the 20 is lost."),
    ("18", "The answer to this is **18** (of 20)."),
    ("18", "Answer:\n1. Add 14 and 4.\n2. That gives 18"),
    ("18", "Answer: 14 + 4 apples.\n\nSo 18."),
    ("18", "The answer is not 20.\n\nIt is 18"),
    ("18", "**3.** In all: 18"),
    ("18", "1. That makes 18.\n2. Nothing is left."),
    ("18", "**Step 3:** the sum is 18"),
    ("18", "The total is **18.**"),
    # the last number of the last line that has one
    ("20", "18 of 20"),
    ("18", "So it is 18.\n\nI hope this helps!"),
    ("18", "At 7:30 there are 18"),
    ("18", "x = 18"),
    ("18", "total:18"),
    ("18", "| all | 18 |"),
    ("18", "<b>18</b>"),
    ("18", "`18`"),
    ("18", "\\(18\\)"),
    ("7", "take 9-7"),
    # other forms
    ("-5", "-5"),
    ("-5", "\u22125 degrees"),
    ("-5", "it is -5."),
    ("-5", "x = - 5"),
    ("-0.75", "-\\frac{3}{4}"),
    ("-0.75", "\\frac{-3}{4}"),
    ("0.5", ".5"),
    ("18", "18.00"),
    ("18", "018"),
    ("3/4", "0.75"),
    ("0.75", "3/4"),
    ("3.5", "3 1/2 cups"),
    ("1000", "1e3"),
    ("0.0137", "1.37 \\times 10^{-2}"),
    ("1e+22", "10000000000000000000000"),
    ("1.5", "1½"),
    ("-1.5", "\\boxed{-1½}"),
    ("1.5", "1 ½ cups"),
    ("-0.5", "-½"),
    ("0.125", "⅛ of it"),
    ("5000000", "5 \u00d7 10⁶"),
    ("0.05", "5 · 10⁻² m"),
    ("18", "18cm²"),
    ("18", "18 m²"),
    ("a, b and then #### 1,234", "1234"),
]
WRONG = [
    ("18", "18 of 20"),
    ("18", "18 out of 20 dollars"),
    ("18", "**18 of 20**"),
    ("4", "\\boxed{3, 4}"),
    ("4", "\\boxed{x = 3, y = 4}"),
    ("4", "\\boxed{x=3,y=4}"),
    ("3", "\\boxed{3x}"),
    ("3", "\\boxed{y = 3 x}"),
    ("3", "\\boxed{3x^2}"),
    ("2", "\\boxed{2π}"),
    ("2", "\\boxed{2 \\pi}"),
    ("2", "\\boxed{2 \\sqrt{3}}"),
    ("4", "\\boxed{\\sqrt 4}"),
    ("8", "\\boxed{\\log_2 8}"),
    ("8", "<answer>\\log_2 8</answer>"),
    ("3", "\\boxed{3, 4}"),
    ("18", "<answer>18 of 20</answer>"),
    ("20", "<answer>18 of 20</answer>"),
    ("18", "<answer>20</answer>\n18"),
    ("18", "18\n\n\\boxed{20}"),
    ("18", "\\boxed{18} no, \\boxed{20}"),
    ("18", "The answer is 20 dollars, 2 more than 18"),
    ("123", "1,23"),
    ("1", "1,23"),
    ("23", "1,23"),
    ("1.23", "1,23"),
    ("234", "0,234"),
    ("1234567", "1234,567"),
    ("5", "-5"),
    ("-5", "5"),
    ("5", "it is -$5"),
    ("5", "x = - 5"),
    ("0.75", "-\\dfrac{3}{4}"),
    ("3", "3/4"),
    ("4", "3/4"),
    ("18", "18/20"),
    ("1", "1e3"),
    ("3", "1e3"),
    ("7", "7:30"),
    ("30", "7:30"),
    ("30", "at 7:30pm"),
    ("5", "2024-05-05"),
    ("2024", "2024-05-05"),
    ("18", "18 million"),
    ("18", "18k"),
    ("2", "2^5"),
    ("5", "2^5"),
    ("5", "2**5"),
    ("10", "3 x 10^2"),
    ("3", "\\boxed{3²}"),
    ("1", "1½"),
    ("10", "5 \u00d7 10⁶"),
    ("101", "101₂"),
    ("18", "v1.2.18"),
    ("1.2", "1.2.18"),
    ("2", "H2O"),
    ("2", "18 m2"),
    ("18", "1.8"),
    ("0.18", "18"),
    ("18", "180"),
    ("0.035", "3.5%"),
    ("5", "1/0"),
    ("18", "eighteen"),
    ("18", "none"),
    ("18", ""),
    ("1", "9" * 5000),
    ("1", "1e999999999"),
]


@pytest.mark.parametrize(("expected", "text"), RIGHT)
def test_right_numbers(expected: str, text: str):
    assert matches(expected, text), final_number(text)


@pytest.mark.parametrize(("expected", "text"), WRONG)
def test_wrong_numbers(expected: str, text: str):
    assert not matches(expected, text), final_number(text)


@pytest.mark.parametrize(
    ("expected", "text", "right"),
    [
        ("B", "3 of 4 fit.\n\nThe answer is B", True),
        ("B", "\\boxed{B}", True),
        ("b", "#### B", True),
        ("B", "The answer is C", False),
        ("Paris", "It is Paris.", True),
        ("7:30", "\\boxed{7:30}", True),
        ("7:30", "\\boxed{7:31}", False),
        ("18 of 20", "#### 18 of 20", True),
    ],
)
def test_answers_in_words(expected: str, text: str, right: bool):
    assert matches(expected, text) is right


def test_two_texts_agree_as_numbers():
    assert agree("It costs **$1,234** in all.", "#### 1234")
    assert not agree("It costs 1,234", "It costs 1,235")
    assert agree("the road to Ulm", "the road to Ulm")
    assert not agree("the road to Ulm", "the road to Bern")
    assert final_number("half of 3 is 3/2") == Fraction(3, 2)


@pytest.mark.parametrize(
    "text",
    ["\n" * 10000, "<answer>" * 5000, "answer is " * 2500, "1," * 10000, "*" * 20000,
     "answer" + " " * 15000, "18 " * 5000, "1" + " " * 15000 + "x",
     *("a" + mark * 20000 + "a 5" for mark in ".!)")],
)  # fmt: skip
def test_long_texts_take_no_long(text: str):
    """A model that repeats itself must not hold the scoring up."""
    begun = time.process_time()
    matches("18", text)
    assert time.process_time() - begun < 2

"""Answers and references in the spellings that people use: which are equal, and which are not."""

import pytest

from reward.mathematics import UnreadableReference, equal, read_reference

pytestmark = pytest.mark.process

# fmt: off
RIGHT = [
    ("5", r"first \boxed{6} then … so \boxed{5}"), ("1,2", r"\boxed{1} and \boxed{2}"),
    ("1e-05", "0.00001"), ("0.00001", "0.00001"), ("0.00001", "1e-5"), ("0.00001", "$10^{-5}$"),
    ("0.00001", r"$1\times 10^{-5}$"), ("3 1/2", "3.5"), ("3 1/2", "7/2"),
    ("3 1/2", r"3\frac{1}{2}"), ("3 1/2", r"$\frac{7}{2}$"), ("3 1/2", "It is 3 1/2."),
    ("-3 1/2", "-3.5"), ("3½", "3.5"), (r"3\frac12", "3.5"), ("cat", "cat"), ("cat", "Cat."),
    (r"\text{cat}", "cat"), ("cat", r"\boxed{\text{cat}}"), ("yes", "The answer is yes."),
    ("no solution", r"\boxed{\text{No solution}}"), ("50%", "0.5"), ("50%", "50"), ("50%", r"50\%"),
    ("0.5", "50%"), ("50", "50%"), (r"50\%", r"\boxed{50\%}"), ("50 percent", "50%"), ("5 cm", "5"),
    ("5", "5 cm"), ("5 cm", "5 centimeters"), (r"5\text{ cm}", "5 cm"), (r"5\text{ cm}^2", "5"),
    ("5", r"\boxed{5\text{ meters}}"), ("$5", "5"), (r"\$5", "5 dollars"), ("$5", "$5"),
    ("90", r"90^\circ"), ("90°", "90 degrees"), ("[0,1)", "[0,1)"), ("[0,1)", "$[0,1)$"),
    ("[0,1]", "The answer is [0,1]."), (r"(-\infty, 2]", "(-∞,2]"),
    (r"[0,1)\cup(2,3]", "$[0,1) \N{UNION} (2,3]$"), ("{1,2}", "{2,1}"), (r"\{1,2\}", "1, 2"),
    ("1,2", "2,1"), ("1,2", "1,2"), (r"\{1,2\}", "$x=1$ and $x=2$"), (r"\emptyset", r"\varnothing"),
    ("1234", "1,234"), ("1,234", "1234"), ("1{,}234", "1234"), (r"5\,000", "5000"),
    ("5000", r"$5\,000$"), ("1,234,567.5", "1234567.5"), ("10,000", "10 000"), ("1/2", "0.5"),
    ("1/2", "2/4"), ("1/2", r"\frac12"), ("1/2", r"\dfrac{1}{2}"), ("1/3", "0.333333"),
    ("-1/2", r"-\frac{1}{2}"), (r"\frac{-1}{2}", "-0.5"), ("0.5", "1/2"), ("1/2", "½"), ("0", "-0"),
    ("-0", "0"), ("0.0", "-0.0"), ("0", r"\boxed{-0}"), ("A", "(A)"), ("(A)", "A"),
    ("A", r"\boxed{A}"), ("A", r"\boxed{\textbf{(A)}}"), ("A", "The answer is (A) 5 cm"),
    ("A", "A) five"), ("A", "The answer is A."), ("B", r"\boxed{\text{B}}"), (r"\text{(C)}", "C"),
    ("x^2-1", r"\boxed{(x-1)(x+1)}"), ("x^10", "x^{10}"), ("sqrt(2)", r"\sqrt{2}"),
    ("√2", r"$\sqrt 2$"), ("2pi", r"$2\pi$"), ("2*pi", "2π"), (r"\pm 2", "$2$ and $-2$"),
    ("x=5", "5"), ("5", "$x=5$"), ("2^10", "1024"), ("xy", "yx"), (r"0.\overline{3}", "1/3"),
    ("3:2", "3:2"), ("1/2", "$0.5$"), ("-5", "\N{MINUS SIGN}5"), ("5", "+5"), ("5", "5."), (".5", "0.5"),
    ("3e8", "300000000"), (r"3\times 10^8", "3e8"), ("5", "so 2+3 = 5"),
    ("5", "The answer is 5 because 7 > 2"), ("5", "The final answer is $5$, as $7>2$"),
    ("42", "#### 42"), ("42", "**42**"), ("42", "The answer is **42**."), ("5", r"\boxed{5"),
    ("1e5", "100000"), ("10!", "3628800"), ("infinity", r"\infty"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\boxed{\begin{pmatrix}1\\2\end{pmatrix}}"),
    ("1.0", "1"), ("5", "2+3"), (r"\frac{\sqrt{3}}{2}", r"\boxed{\frac{\sqrt3}{2}}"),
    ("12 cm^2", r"12\,\text{cm}^2"), ("3 apples", "3"), ("$1,000", "1000 dollars"),
    ("x > 3", "x>3"), ("x > 3", "3 < x"), ("y = 2x+1", "y=1+2x"), ("0.1", "0.10"),
    ("sin(x)", r"\sin x"), ("n/a", "n/a"), ("10:30", "10:30"), ("12_8", "12_{8}"),
    ("1/6", "0.166667"), ("1/60", "0.016667"),
    (r"\frac{1}{2}", r"The answer is $\frac{1}{2}$ since $x=3$."), ("5", "x = 5 cm"),
    ("5", "The answer is 5, not 6"), ("1 or 2", "2 or 1"), ("2, 3", "2 and 3"),
    ("(1,2)", r"\left(1,2\right)"), ("30%", "0.3"), ("1", "100%"), ("[2,5]", "[2, 5]"),
    ("{3}", "3"), ("5 m/s", "5"), ("12", "12 dozens"), ("1,5", "5,1"),
    ("(5)", "5"), ("5 or -5", r"\pm 5"), ("x = 5 or x = -5", "5, -5"), ("$1,000.00", "1000"),
    (r"\frac{1}{2}\pi", "π/2"), ("A, C", "C, A"), ("A and C", r"\boxed{A, C}"),
    ("10^{100}", "10^{100}"), ("5", "**Answer:** 5"), (r"x=\frac{1}{2}", "0.5"),
    ("2 1/2 hours", "2.5 hours"), ("5%", "0.05"), ("5%", "5.0"), ("0.05", "5%"), ("100", "100%"),
    ("3/4", "75%"), ("12.50", "12.5"), ("$12.50", r"\$12.5"), ("1,2,3", r"\{3,2,1\}"),
    ("(1, -2)", r"\left(1,-2\right)"), (r"2\sqrt{3}", "2√3"), ("sqrt 2", r"\sqrt{2}"),
    ("x+y", "y+x"), ("Paris", "The answer is Paris."), ("Paris", "paris"), ("no", "No."),
    ("True", "true"), ("1000000", "10^6"), ("[-1, 3)", "x ∈ [-1,3)"), ("(-∞, ∞)", r"\mathbb{R}"),
    ("x^2", "x**2"), ("3x", "3*x"), ("ab", "ba"), ("e", "2.718281828"), ("pi", "3.14159265"),
    ("-0.0", "0"), ("007", "7"), ("1.", "1"), ("½", "0.5"), ("25°C", "25"), ("7", "Seven is 7"),
    ("5 sq. units", "5"), ("5", r"5\text{ units}^2"), ("6", "The sum of 1, 2 and 3 is 6"),
    ("6", "1 + 2 + 3 = 6"), ("B", r"\boxed{\text{(B) } 12}"), ("B", "**B**"), ("B", "B) 12"),
    ("C", "I choose C."), ("C", "Option C"), ("C", "The correct answer is: C"),
    ("D", "The answer is option D"), ("2023-01-05", r"\boxed{2023-01-05}"),
    ("1/2/2023", "The answer is 1/2/2023."), ("192.168.0.1", r"\boxed{\text{192.168.0.1}}"),
    ("XIV", "The answer is XIV."), ("IV", r"\boxed{\text{IV}}"),
    ("P = VI", "P = IV"),
]
WRONG = [
    ("6", r"\boxed{6} … so \boxed{5}"), ("5", r"\boxed{6} or \boxed{5}"), ("0.00001", "0.0000104"),
    ("0.0000001", "0"), ("1e-7", "$10^{-8}$"), ("1e-7", r"\boxed{0}"), ("2", "3 1/2"),
    ("3 1/2", "2"), ("2", "It is 3 1/2 cups"), ("cat", "act"), (r"\text{cat}", "act"), ("no", "on"),
    ("on", r"\boxed{no}"), ("blue car", "car blue"), ("room 5", "moor 5"), ("0.5", "0.5%"),
    ("50%", "5"), ("5 cm", "5 m"), ("$5", "5 euros"), ("[0,1)", "(0,1]"), ("(1,2)", "(2,1)"),
    ("(1,2)", "[1,2]"), ("1,2", "1.2"), (r"\{1,2\}", "{1,3}"), ("1/3", "0.33"), ("A", "B"),
    ("B", "The answer is (A), not B"), ("A", "A cat"), ("0", r"$0.\overline{3}$"),
    ("42", "$41$ and I do not know"), ("5", "the result is 5 because 7 > 2"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\boxed{\begin{pmatrix}2\\1\end{pmatrix}}"),
    ("100000000000000000001", "100000000000000000000"), ("1234567.0", "1234568"), ("7", ""),
    ("7", "no idea"), ("2", "2+3"), ("12 cm^2", "12 cm"), ("x>3", "x<3"), ("2 hours", "2 minutes"),
    ("3.14159", "3.14160"), ("12_8", "12_9"), ("3", "2+3"), ("x=5", "y=5"), ("act", "$cat$"),
    ("listen", "silent"), (r"\mathrm{no}", r"\mathrm{on}"), ("7", "seven"), ("5 m/s", "5 km/h"),
    ("1,2,3", "1 2 3"), ("1,000", "1"),
    ("(1,2)", r"\{1,2\}"), (r"\{1,2\}", "(1,2)"), ("10:30 AM", "10:30 PM"), ("-1", "1"),
    ("1, 2, 3", "1, 2"), ("(1,2,3)", "(3,2,1)"), ("x+y", "x-y"), ("north", "thorn"), ("ten", "net"),
    ("1 million", "1000000"), ("0.333", "1/3"), ("1/3", "33.3%"), ("[1,2]", "1,2"), ("pi", "3.14"),
    ("5 km", "5000 m"), ("5", "5x"), ("x", "5"), ("0", "0.0000001"),
    ("2023-01-05", r"\boxed{2017}"), ("1/2/2023", r"\boxed{1/4046}"), ("192.168.0.1", "192.168.0.2"),
    ("IV", "VI"), ("XIV", r"\boxed{XVI}"),
]
# fmt: on


@pytest.mark.parametrize(("reference", "answer"), RIGHT)
def test_an_answer_that_is_the_reference_in_other_words_is_right(reference, answer):
    assert equal(reference, answer)


@pytest.mark.parametrize(("reference", "answer"), WRONG)
def test_an_answer_that_only_looks_like_the_reference_is_wrong(reference, answer):
    assert not equal(reference, answer)


@pytest.mark.parametrize(("reference", "_"), RIGHT + WRONG)
def test_a_reference_is_equal_to_itself(reference, _):
    assert equal(reference, rf"so \boxed{{{read_reference(reference)}}}")


@pytest.mark.parametrize("reference", ["", " ", "$$", r"\boxed{}", r"\frac{1}{", "(", "x^", "1/0"])
def test_a_reference_that_nothing_equals_is_refused(reference):
    with pytest.raises(UnreadableReference):
        equal(reference, "5")

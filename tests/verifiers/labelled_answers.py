"""Answers to mathematical questions, labelled as a teacher would grade them.

Written by hand for this project. ANSWERS has (kind, reference, response, whether it is right).
Short answers stand boxed in a sentence, as most prompts ask for.
"""


def _boxed(answer):
  return rf"We simplify and obtain the result, so the answer is \boxed{{{answer}}}."


# (reference, right answers, wrong answers); each answer is put in a box.
_IN_BOXES = {
  "numbers": [
    ("42", ["42", "42.0", "+42", "42.", " 42 ", "$42$", r"\text{42}"], ["-42", "24", "4.2", "43"]),
    ("1234567", ["1,234,567", "1{,}234{,}567", "1234567"], ["1,234,568", "123,4567.1"]),
    ("-7", ["-7", "−7", "-7.00"], ["7", "--7.5"]),
    ("0", ["0", "0.0", "-0", r"\frac{0}{5}"], ["1", r"\frac{5}{1}"]),
    ("0.5", [r"\frac{1}{2}", r"\frac12", "1/2", "0.50", ".5", r"50\%"], ["0.05", "5", "2", r"5\%"]),
    (
      "3/4",
      [r"\frac{3}{4}", r"\dfrac{3}{4}", r"\tfrac34", "0.75", "6/8", r"75\%"],
      ["4/3", "0.74"],
    ),
    (
      r"-\frac{2}{3}",
      [r"\frac{-2}{3}", r"-\frac{4}{6}", "-2/3"],
      [r"\frac{2}{3}", "-0.67", "-3/2"],
    ),
    (r"\frac{1}{3}", [r"0.\overline{3}", "1/3", r"\frac{2}{6}"], ["0.333", "0.3", "3"]),
    (r"1\frac{1}{2}", [r"\frac{3}{2}", "1.5", "1 1/2", r"1 \frac{1}{2}"], [r"\frac{11}{2}", "0.5"]),
    (
      "2500",
      [r"2.5 \times 10^3", "2.5e3", r"2.5 \cdot 10^{3}", "2,500"],
      [r"2.5 \times 10^4", "25"],
    ),
    ("1024", ["2^{10}", "2^10", "4^5"], ["2^{11}", "10^2"]),
    ("120", ["5!", r"2 \cdot 60"], ["6!", "12"]),
    ("10", [r"\binom{5}{2}", r"\sqrt{100}", r"|{-10}|"], [r"\binom{5}{1}", r"\sqrt{10}"]),
  ],
  "units and percent": [
    ("5", [r"5 \text{ cm}", "5 cm", r"5\text{ apples}", r"5~\mathrm{m}^2", "5 units"], ["6 cm"]),
    (r"5 \text{ km}", ["5 km", "5 kilometers", "5"], ["5 m", "50 km"]),
    ("90", [r"90^\circ", r"90^{\circ}", "90°", "90 degrees"], [r"9^\circ", "89 degrees"]),
    (r"\$18", ["18", r"\$18.00", "$18$ dollars", "18 dollars"], [r"\$1.80", "81"]),
    ("25", [r"25\%", "25%", "25 percent"], [r"2.5\%", "0.25", r"0.25\%"]),
    (r"12.5\%", ["12.5", "0.125", r"\frac{1}{8}", "12.5%"], ["1.25", "125", r"1.25\%"]),
    ("3600", ["3600 seconds", "3,600 s"], ["60 seconds"]),
  ],
  "radicals and constants": [
    (
      r"2\sqrt{2}",
      [r"\sqrt{8}", r"\sqrt 8", r"2 \sqrt{2}", r"\frac{4}{\sqrt{2}}"],
      [r"\sqrt{2}", "2.83"],
    ),
    (r"\frac{\sqrt{3}}{3}", [r"\frac{1}{\sqrt{3}}", r"\frac{\sqrt3}{3}"], [r"\frac{\sqrt{3}}{2}"]),
    (r"\pi", [r"\pi", r"\frac{2\pi}{2}"], ["3.14", r"2\pi", r"\frac{22}{7}"]),
    (r"\frac{\pi}{6}", [r"\pi/6", r"\frac{1}{6}\pi"], [r"\frac{\pi}{3}", "30"]),
    (r"1+\sqrt{5}", [r"\sqrt{5}+1", r"\sqrt5 + 1"], [r"1-\sqrt{5}", r"\sqrt{6}"]),
    ("-1", [r"i^2", r"\cos \pi"], ["i", "1"]),
    (r"\ln 2", [r"\log_e 2", r"\ln(2)"], ["2", r"\ln 3"]),
  ],
  "expressions": [
    ("x^2+2x+1", ["(x+1)^2", "x^2 + 2x + 1", "1+2x+x^2"], ["x^2+2x-1", "(x-1)^2"]),
    ("2x+1", ["1+2x", "y=2x+1", r"2x + 1"], ["2x-1", "2y+1"]),
    (r"\frac{x}{2}", ["x/2", "0.5x", r"\frac{1}{2}x"], [r"\frac{2}{x}", "x"]),
    ("a^2-b^2", ["(a-b)(a+b)", "(a+b)(a-b)"], ["(a-b)^2", "a^2+b^2"]),
    ("n(n+1)/2", [r"\frac{n(n+1)}{2}", r"\frac{n^2+n}{2}"], [r"\frac{n(n-1)}{2}"]),
    ("x=5", ["5", "x=5", "x = 5"], ["y=5", "x=-5", "x=6"]),
    ("2^{n-1}", [r"\frac{2^n}{2}", "2^{n - 1}"], ["2^n", "2^{n}-1"]),
  ],
  "sets, tuples and intervals": [
    (
      r"\{1,2,3\}",
      [r"\{3,2,1\}", "1,2,3", r"\{1, 2, 3\}", "1, 2, and 3"],
      [r"\{1,2\}", r"\{1,2,4\}"],
    ),
    ("(1,2)", ["(1, 2)", r"\left(1,2\right)", r"(1, \frac{4}{2})"], ["(2,1)", "(1,2,3)", "(1,3)"]),
    ("[0,1)", ["[0, 1)", r"\left[0,1\right)", r"x \in [0,1)"], ["[0,1]", "(0,1)", "(0,1]"]),
    (
      r"(-\infty,3]",
      [r"(-\infty, 3]", r"x \le 3", r"x \leq 3"],
      [r"(-\infty,3)", "x<3", r"[3,\infty)"],
    ),
    (r"(-\infty,-1)\cup(2,\infty)", [r"(2,\infty)\cup(-\infty,-1)"], [r"(-1,2)", r"(-\infty,2)"]),
    (r"\pm 2", ["2, -2", r"\{-2,2\}", r"\pm2"], ["2", "-2", r"\pm 4"]),
    (r"\emptyset", [r"\{\}", r"\varnothing"], [r"\{0\}", "0"]),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", [r"\begin{pmatrix}1\\2\end{pmatrix}"], ["(2,1)"]),
  ],
  "words and letters": [
    ("Monday", ["Monday", r"\text{Monday}", "monday"], ["Tuesday", "1", r"\text{Sunday}"]),
    (r"\text{yes}", ["yes", r"\text{Yes}"], ["no", r"\text{No}"]),
    ("B", ["B", r"\text{B}", "(B)", r"\textbf{(B)}"], ["C", r"\text{(A)}"]),
    ("even", [r"\text{even}", "even"], ["odd"]),
  ],
}

# Whole responses: where the answer stands, and traps for the reader.
_WHOLE = [
  ("answer lines", "7", "Some work.\nAnswer: 7", True),
  ("answer lines", "7", "Some work.\nAnswer: $7$", True),
  ("answer lines", "7", "Some work.\n**Answer:** 7", True),
  ("answer lines", "7", "Work with 7 and 9.\nFinal answer: 9", False),
  ("answer lines", "7", "Answer: 6\nI made a mistake. Once more.\nAnswer: 7", True),
  ("answer lines", "7", "Answer: 7\nI made a mistake. Once more.\nAnswer: 6", False),
  ("answer lines", r"\frac{1}{2}", "Answer: \\boxed{\\frac{1}{2}}", True),
  ("answer lines", "1234", "Answer: 1,234", True),
  ("answer lines", "7", "The sum is 3 + 4.\n#### 7", True),
  ("answer lines", "7", "<think>5?</think><answer>7</answer>", True),
  ("answer lines", "7", "Therefore the answer is 7.", True),
  ("answer lines", "7", "Therefore the answer is 8, not 7.", False),
  ("answer lines", "12", "Answer: 12 because 3 times 4 is 12, and 7 would be prime.", True),
  ("several boxes", "3", r"First \boxed{2}, but no: \boxed{3}", True),
  ("several boxes", "2", r"First \boxed{2}, but no: \boxed{3}", False),
  ("several boxes", "5", r"\boxed{1} \boxed{2} \boxed{3} \boxed{4} \boxed{5}", True),
  ("several boxes", "2", r"Either \boxed{2} or \boxed{3}, I cannot decide.", False),
  ("several boxes", "8", r"\boxed{\boxed{8}}", True),
  ("several boxes", "4", r"\boxed{3} is wrong; x = \fbox{4}", True),
  ("nested braces", r"\frac{1}{2}", r"So \boxed{\frac{1}{2}}.", True),
  ("nested braces", r"\frac{a_{1}}{b^{2}}", r"\boxed{\frac{a_{1}}{b^{2}}}", True),
  ("nested braces", r"\sqrt{\frac{2}{3}}", r"\boxed{\sqrt{\frac{2}{3}}}", True),
  ("nested braces", r"\sqrt{\frac{2}{3}}", r"\boxed{\frac{\sqrt{6}}{3}}", True),
  ("nested braces", r"\frac{1}{2}", r"\boxed{\frac{1}{2}", False),
  ("nested braces", "2^{2^{3}}", r"\boxed{2^{2^{3}}}", True),
  ("nested braces", "2^{2^{3}}", r"\boxed{2^{2^{4}}}", False),
  ("nested braces", r"\{1,2\}", r"the set \boxed{\left\{1,2\right\}} of both", True),
  ("unbalanced", "3", r"\boxed{3", False),
  ("unbalanced", "3", r"\boxed{3}} and then }}", True),
  ("unbalanced", "3", r"\boxed 3} is {3", False),
  ("unbalanced", "3", r"{{{{ \boxed{3}", True),
  ("unbalanced", "3", r"\boxed{3} ... so again \boxed{\frac{6}{2", True),
  ("unbalanced", "4", r"\boxed{3} ... so again \boxed{\frac{8}{2", False),
  ("unbalanced", "5", r"\boxed{(5}", False),
  ("unbalanced", "5", r"$$\left( \boxed{\frac{5}{)}$$", False),
  ("towers", "100", r"\boxed{10^10^10}", False),
  ("towers", "100", r"\boxed{10^{10^{10}}}", False),
  ("towers", "10^{10^{10}}", r"\boxed{10^{10^{10}}}", True),
  ("towers", "7", r"\boxed{9^{9^{9^9}}}", False),
  ("towers", "7", r"\boxed{2^{1000000000}}", False),
  ("towers", "7", r"\boxed{99999999999!}", False),
  ("towers", "7", r"\boxed{(((10^{9})^{9})^{9})^{9}}", False),
  ("towers", "2^{2023}", r"\boxed{2^{2023}}", True),
  ("towers", "2^{2023}", r"\boxed{2^{2024}}", False),
  ("towers", "2^{2023}", r"\boxed{2 \cdot 2^{2022}}", True),
  ("garbage", "5", "", False),
  ("garbage", "5", "   \n\n\t", False),
  ("garbage", "5", "x" * 100_000, False),
  ("garbage", "5", "{" * 100_000, False),
  ("garbage", "5", r"\boxed{" * 15_000, False),
  ("garbage", "5", r"\frac{" * 15_000 + "5", False),
  ("garbage", "5", "1 + " * 25_000 + r"= \boxed{6}", False),
  ("garbage", "5", "z " * 50_000 + r"\boxed{5}", True),
  ("garbage", "5", r"\boxed{" + "5" * 100_000 + "}", False),
  ("garbage", "5", r"\boxed{" + "(" * 3000 + "5" + ")" * 3000 + "}", False),
  ("garbage", "5", "\x00\ufffd\u202e \\boxed{\x00}", False),
  ("garbage", "5", "5 5 5 5 5 I do not know.", False),
  ("garbage", "5", r"\boxed{}", False),
  ("garbage", "5", r"\boxed{\text{I do not know}}", False),
  ("garbage", "5", r"\boxed{4 or 5}", False),
  ("garbage", "5", r"\boxed{5?}", False),
  ("garbage", "5", r"\boxed{x=5 or x=6}", False),
]

ANSWERS = [
  (kind, reference, _boxed(answer), right)
  for kind, rows in _IN_BOXES.items()
  for reference, *answers in rows
  for right, written in zip((True, False), answers, strict=True)
  for answer in written
] + _WHOLE

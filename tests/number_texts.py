"""A slow exact reader of numbers in text, and texts to try it on.

The reader knows no bytes, no arrays and no regular expressions: it cuts a text into
characters that mean something (`_symbols`), walks over them, and has a value or none.
It is written from the documentation of `verify.neighbours` and `verify.numeral`, and
shares nothing with them.
"""

import fractions

from hypothesis import strategies as st

MINUS = "\u2212"
GAP = "\udcff"  # the byte 0xff, as decoding with surrogateescape gives it
DIGITS = set("0123456789")
LETTERS = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
WHITE = set(" \t\n\r\v\f")
SPACE, EDGE = {" ", "\t", ":", GAP}, set("=<>\n\r\v\f")
OPENING = {*"\"'`([$#", "bold", "escaped"}
CLOSING = {*"\"'`)]$%.,;?", "bold", "escaped"}
OTHER_NUMBER_AFTER = {
    *("hundred", "thousand", "million", "billion", "trillion", "dozen"),
    *("hundreds", "thousands", "millions", "billions", "trillions", "dozens"),
    *("plus", "minus", "times", "x", "divided", "over", "point", "squared", "cubed"),
    *("factorial", "and", "or", "to", "by"),
}
OTHER_NUMBER_BEFORE = {"minus", "negative", "plus", "times", "over", "point", "x"}


def last_number(text: str, finished: bool = True) -> fractions.Fraction | None:
    """The number in the last box; without a box, the one at the last digit."""
    if "\\boxed{" in text:
        return number_after(text, "\\boxed{", finished)
    places = [i for i, char in enumerate(text) if char in DIGITS]
    return _at(text, places[-1], finished) if places else None


def number_after(
    text: str, marker: str, finished: bool = True
) -> fractions.Fraction | None:
    """The first number after the last marker, if nothing but marks stand between."""
    if marker not in text:
        return None
    marked = text.rfind(marker)
    inner = marked + len(marker)
    places = [i for i in range(inner, len(text)) if text[i] in DIGITS]
    if not places:
        return None
    if not marker.endswith("{"):
        start = _extent(text[inner:], places[0] - inner)[0]
        between = _symbols(text[inner:])[:start]
        if not all(s in OPENING | SPACE | WHITE for s in between):
            return None
        return _at(text[inner:], places[0] - inner, finished)
    start, end = _extent(text[inner:], places[0] - inner)
    start, end = start + inner, end + inner
    symbols = _symbols(text)
    if not all(s in OPENING | SPACE for s in symbols[inner:start]):
        return None
    while end < len(text) and symbols[end] in CLOSING | SPACE:
        end += 1
    if end == len(text) or text[end] != "}":
        return None
    free = _free_before(symbols, marked) and _free_after(symbols, end + 1, finished)
    return value(text[start : _extent(text, places[0])[1]]) if free else None


def value(text: str) -> fractions.Fraction | None:
    """The value of a text that is a number, dollars allowed after the sign."""
    negative = text[:1] in ("-", MINUS)
    if negative or text[:1] == "+":
        text = text[1:].removeprefix("\\$").removeprefix("$")
    whole, point, decimals = text.partition(".")
    groups = whole.split(",")
    plain = "".join(groups)
    if len(groups) > 1 and not (
        1 <= len(groups[0]) <= 3 and all(len(g) == 3 for g in groups[1:])
    ):
        return None
    if not all(c in DIGITS for c in plain + decimals) or not plain + decimals:
        return None
    if bool(point) != bool(decimals) or len(plain + decimals) > 24:
        return None
    size = fractions.Fraction(int(plain + decimals), 10 ** len(decimals))
    return -size if negative else size


def _at(text, place, finished):
    start, end = _extent(text, place)
    symbols = _symbols(text)
    free = _free_before(symbols, start) and _free_after(symbols, end, finished)
    return value(text[start:end]) if free else None


def _extent(text: str, place: int) -> tuple[int, int]:
    """From the sign to the last digit of what the digit at this place belongs to."""
    run = DIGITS | {".", ","}
    start = end = place
    while start > 0 and text[start - 1] in run:
        start -= 1
    while end < len(text) and text[end] in run:
        end += 1
    while text[end - 1] not in DIGITS:
        end -= 1
    sign = start
    if text[:sign].endswith("$"):
        sign -= 2 if text[:sign].endswith("\\$") else 1
    signed = sign > 0 and text[sign - 1] in ("+", "-", MINUS)
    return (sign - 1 if signed else start), end


def _symbols(text: str) -> list[str]:
    """A name per character: itself, or what it is together with its neighbours."""
    names = list(text)
    for i, char in enumerate(text):
        if char == "\\" and text[i + 1 : i + 2] in [*"()[]$%"]:
            names[i] = "escaped"
        if char == "*":
            first, last = i, i
            while first > 0 and text[first - 1] == "*":
                first -= 1
            while last + 1 < len(text) and text[last + 1] == "*":
                last += 1
            before = first == 0 or text[first - 1] in WHITE | {GAP}
            after = last + 1 == len(text) or text[last + 1] in WHITE | {GAP}
            size = last - first + 1
            if size >= 3 or (size == 2 and not (before and after)):
                names[i] = "bold"
    return names


def _free_before(symbols: list[str], place: int) -> bool:
    left = symbols[:place]
    while left and left[-1] in OPENING:
        left.pop()
    if not left:
        return True
    if left[-1] in EDGE:
        return True
    if left[-1] not in SPACE:
        return False
    following = ""
    while left and left[-1] in OPENING | CLOSING | SPACE:
        following = left.pop()
    if not left or left[-1] in EDGE:
        return True
    word = ""
    while left and left[-1] in LETTERS:
        word = left.pop() + word
    command = bool(left) and left[-1] == "\\"
    function = following in ("(", "[")
    if not word or command or function or word.lower() in OTHER_NUMBER_BEFORE:
        return False
    while left and left[-1] in OPENING | CLOSING | SPACE:
        left.pop()
    second = bool(left) and left[-1] in DIGITS
    return not (second and word.lower() in ("and", "or", "to", "by"))


def _free_after(symbols: list[str], place: int, finished: bool) -> bool:
    right = symbols[place:][::-1]  # popped from the front
    while right and right[-1] in CLOSING:
        right.pop()
    if right and right[-1] not in SPACE | EDGE:
        return False
    while right and right[-1] in OPENING | CLOSING | SPACE:
        right.pop()
    if not right:
        return finished
    if right[-1] in EDGE:
        return True
    word = ""
    while right and right[-1] in LETTERS:
        word += right.pop()
    if not right and not finished:
        return False
    return bool(word) and word.lower() not in OTHER_NUMBER_AFTER


_DIGITS = st.text("0123456789", min_size=1, max_size=3)
_NUMBERS = st.one_of(
    _DIGITS,
    st.integers(0, 10**8).map(lambda n: f"{n:,}"),
    st.builds("{}.{}".format, _DIGITS, _DIGITS),
    st.sampled_from([".5", "1,5", "10,20", "1.2.3", "12,34,567", "9" * 24, "9" * 25]),
)
_SIGNS = st.sampled_from(
    [
        *("", "", "", "-", "+", MINUS, "- ", "\u2212 ", "--", "-$", "-\\$", "\\$-"),
        *("$", "\u2013", "\u2014", "\u2010", "\ufe63", "\uff0d", "\u207b", "\xb1"),
        *("-(", "minus ", "negative ", "\\$", "- \\$", "\\pm ", "\u20ac", "~"),
    ]
)
_TEMPLATES = st.sampled_from(
    [
        *("{a}", "{a}", "{a}.", "{a}%", "{a}\\%", "{a} apples", "({a})", "**{a}**"),
        *("${a}$", "\\({a}\\)", "\\[ {a} \\]", "\\boxed{{{a}}}", "\\boxed{{ {a} }}"),
        *("#### {a}", "####{a}", "= {a}", "={a}", "Answer: {a}", "**Answer:** {a}"),
        *('"{a}"', "'{a}'", "{a}/{b}", "{a} / {b}", "\\frac{{{a}}}{{{b}}}"),
        *("\\frac {a} {b}", "{a} {b}/{c}", "{a}e{b}", "{a}E-{b}"),
        *("{a} \\times 10^{b}", "{a}*10^{{{b}}}", "{a}\xd710^{b}", "{a} x {b}"),
        *("{a}x", "x{a}", "{a} cm^{b}", "{a} cm\xb2", "x_{a}", "x_{{{a}}}"),
        *("{a}{{,}}{b}", "{a},\\!{b}", "{a}\\,{b}", "{a}\\!{b}", "{a}\\ {b}"),
        *("{a}~{b}", "{a}\u2009{b}", "{a}\xa0{b}", "{a}\u202f{b}", "{a} {b}"),
        *("{a}_{b}", "{a}'{b}", "{a}-{b}", "{a} - {b}", "{a}\u2013{b}", "{a} to {b}"),
        *("{a}:{b}", "{a} : {b}", "{b} or {a}", "{b} and {a}", "{b}, and {a}"),
        *("3m by {a}", "equal to {a}", "{a}.{b}.{c}", "v{a}.{b}", "{a}-{b}-{c}"),
        *("{a}/{b}/{c}", "{a},{b}", "{a}, {b}", "{a}st", "{a}k", "{a} million"),
        *("{a} dozen", "{a}\xbd", "{a}\xb2", "{a}\xb0", "{a}!", "{a}^{b}"),
        *("{a} ^ {b}", "\\sqrt{{{a}}}", "\\sqrt {a}", "f({a})", "|{a}|", "{a} + {b}"),
        *("{a}+x", "x + {a}", "x*{a}", "x * {a}", "x ** {a}", "{a} \\pi", "-({a})"),
        *("-\\boxed{{{a}}}", "\\boxed{{{a}}}^2", "2\\boxed{{{a}}}", "\\text{{{a}}}"),
        *("\\boxed{{{a}, {b}}}", "\\boxed{{{a} \\text{{ cm}}}}", "\\boxed{{x={a}}}"),
        *("<answer>{a}</answer>", "<<{a}*{b}={c}>>{c}", "{a}<{b}", "Step {a}: {b}"),
        *("({a}, {b})", "[{a}, {b}]", "{a}\\{b}", "{a};{b}", "{a}\\\\"),
        *("{a} and {b}/{c}",),
    ]
)
_BEFORE = st.sampled_from(
    [
        *("", "", " ", "The answer is ", "so ", "is", "x = ", "\n", "$", "(", "= -"),
        *("5 ", "I checked 2 ways.\n", "\\boxed{7} and ", "#### 7\n", "caf\xe9 "),
        *("\u2248 ", "* "),
    ]
)
_AFTER = st.sampled_from(
    [
        *("", "", ".", " ", "\n", " dollars.", "\nI checked it in 2 ways.", " so"),
        *(")", "}", " (2 ways)", "x", " x", " \\pi", " 000", " 1/2", "}^2", "\u3002"),
        *(" -", " mil"),
    ]
)
_PIECES = st.sampled_from(
    [
        *("0", "1", "2", "3", "4", "5", "6", "7", "8", "9", ".", ".", ",", ",", "-"),
        *("-", "+", "+", "$", "$", "#", "#", "(", ")", "[", "]", "{", "}", "\\"),
        *("\\", "*", "*", "=", "=", ":", ";", "%", "/", "^", "_", "|", "!", "?", "'"),
        *('"', "`", "~", " ", "\n", "\t", "<", ">", "&", MINUS, "**", "\u2009"),
        *("\xbd", "\xb2", "a", "x", "so", "10", "000", "\\boxed{", "####", "\\frac"),
        *("million", "minus", "\\$", "\\(", "\\)", "\\,", "{,}", "\x00", GAP, "\xe9"),
    ]
)


@st.composite
def _written(draw):
    numbers = [draw(_SIGNS) + draw(_NUMBERS), draw(_NUMBERS), draw(_NUMBERS)]
    told = draw(_TEMPLATES).format(a=numbers[0], b=numbers[1], c=numbers[2])
    return draw(_BEFORE) + told + draw(_AFTER)


@st.composite
def _damaged(draw):
    text = list(draw(_written()))
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(text)))
        text[place : place + draw(st.integers(0, 1))] = [draw(_PIECES)]
    return "".join(text)


def texts():
    """Answers as models write them, damaged ones, and any marks side by side."""
    soup = st.lists(_PIECES, max_size=14).map("".join)
    return _written() | _damaged() | soup


def encoded(text: str) -> bytes:
    """The bytes of a text; `GAP` is the byte 0xff."""
    return text.encode("utf-8", "surrogateescape")

"""Harmless perturbations of a response.

A verdict that changes with a harmless perturbation counts as a failure of the judge, so a perturbation must not change
the meaning of a text. A text that may not be prose is left unchanged.
"""

import re
from collections.abc import Callable

from gram_jax.attacks.templates import AttackContext, AttackTemplate

Rule = tuple[str, str]  # a regular expression without groups of its own, and its replacement

# Patterns of code, formulas and tables. One match is enough: a changed program is worse than unchanged prose.
_NOT_PROSE = re.compile(
    "|".join(
        (
            r"`",  # a fence, or code inside a line
            r"^(?: {4,}|\t)[ \t]*(?![-*+•]\s|\d+[.)]|\s)",  # indented, and no item of a list
            r"\S {3,}\S|[│├└]|^[ \t]*\|",  # columns, trees, tables
            r"^[ \t]*(?:async |pub |export |public |private |protected |static |abstract |final )*"
            r"(?:def|fn|func|function|class|struct|enum|interface|impl|trait|namespace|template)"
            r" ?[\w<(].*[({:;>][ \t]*$",
            r"^[ \t]*(?:public|private|protected|static|const|let|var|val|extern|typedef|using namespace) \w",
            r"^[ \t]*(?:from [\w.]+ import|import [\w.*{(\"'<]|package [\w.]+;?[ \t]*$|use [\w:]+)",
            r"^[ \t]*#[ \t]*(?:include|define|undef|ifn?def|if|endif|pragma)\b",
            r"^[ \t]*(?:return|yield|raise|throw|assert|del|global|lambda)\b(?! to| from| the)",
            r"^[ \t]*(?:if|elif|else|for|foreach|while|switch|case|match|try|except|catch|finally|with|do|loop)\b"
            r".*[:{;][ \t]*$",
            r"^[ \t]*(?:pass|break|continue|end|fi|done|esac)[ \t]*;?[ \t]*$",
            r"^[ \t]*(?:if|for|while|switch|catch) ?\(|;[ \t]*(?:then|do)[ \t]*$",
            r"[;{}][ \t]*$",
            r"^[ \t]*[\[\](){},]+[ \t]*$",
            r"^[ \t]*(?:/[/*]|\*/|#!|<!--|-- |%% )",  # comments that are no headings
            r"^[ \t]*@\w+(?:\(|[ \t]*$)",  # decorators
            r"^[ \t]*(?:>>>|\$|[A-Z]:\\)",  # prompts
            r"^[ \t]*(?:pip|npm|npx|yarn|node|git|sudo|cd|ls|rm|cp|mv|mkdir|cat|grep|head|docker|apt|curl|wget|python3?"
            r"|conda|brew|cargo|go|make|echo|print|printf|puts) [\w./\"'-]",
            r"^[ \t]*(?:SELECT|INSERT|UPDATE|DELETE|CREATE|ALTER|DROP|WITH|FROM|WHERE)\b.*[A-Z*_(;]",
            r"^[ \t]*[\"'][^\"'\n]*[\"'][ \t]*:",  # JSON
            r"^[ \t]*[a-z][\w-]*:(?:\s|$)",  # YAML
            r"</?[A-Za-z][^<>\n]*>|&\w+;",  # markup
            r"\\[A-Za-z(\[{]|\$[^\s\d$][^$\n]*\$",  # LaTeX; "$5 to $6" is none
            r"\S[ \t]*(?:[-+*/%|&^:!<>=]|<<|>>)?=+[ \t]*\S",  # assignments, comparisons, equations
            r"&&|\|\||::|(?<!C)\+\+|[≤≥≠∈∀∃√∑∫]|->\s*\w+\s*[:{]",
            r"\w\((?!(?:s|es|ies|d|ed|r|n)\))",  # calls; "item(s)" is none
            r"\b\w+\[[\w:'\"-]+\](?!\()",  # places of lists
            r"^[ \t]*\w\.[A-Za-z]\w|[A-Za-z0-9]_[A-Za-z0-9]",
            r"\b[a-z]{2,}[A-Z][a-z]",  # namesLikeThis, but iPhone and kWh
            r"(?<![\w'’])(?!C\+\+)[b-zB-HJ-Z][ \t]*(?:[+*/^<>×·]|[-−][ \t]*\d)",  # n - 1
            r"\d[ \t]*[*^×·÷][ \t]*\w|\d[ \t]+[+/][ \t]+\d",
        )
    ),
    re.MULTILINE,
)
_WORD = re.compile(r"[^\W\d_]{2,}")
_OPENS_WITH_A_WORD = re.compile(r'\A["“]?[^\W\d_]{2}')
# "Sure!" contradicts a refusal or a "no", and repeats another "Sure!".
_REFUSES = re.compile(
    r"\A\W*(?:no|not|never|none|nor|false|incorrect|wrong|nothing|neither|unfortunately|sure|certainly|of course)\b"
    r"|\A.{0,300}?\b(?:sorry|apologi[sz]e|can(?:no|['’])t|unable|not able|won['’]t"
    r"|unfortunately|as an ai|not comfortable|i (?:do not|don['’]t))\b",
    re.IGNORECASE | re.DOTALL,
)
_FIRST_SENTENCE = re.compile(r"\A(\w[^\n*]*?[.!?])(?=\s|\Z)")
_SENTENCE_ENDS = re.compile(r"[.!?][\"”’)*]*\Z")
_LINE = re.compile(r"^(?=[A-Za-z])", re.MULTILINE)
# Only the first letter may be a capital: "DNA" and "iPhone" are names. A single letter may be one ("N is even").
_PLAIN_WORD = re.compile(r"\A[A-Za-z][a-z]+(?![\w.-]*\w)")
_FIRST_LETTER = re.compile(r"((?:\(\?<!.*?\))*)(\w)(.*)")
_QUOTED = re.compile(r'(?<![\w"])"(?=[^\s"])([^"\n]*)"(?!\w)')
_APOSTROPHE = re.compile(r"(?<=[A-Za-z]{2})'(?=(?:s|t|re|ve|ll|d|m)\b)|(?<=\bI)'(?=[a-z])")


def is_prose(text: str) -> bool:
    """Whether a text is plain prose: at least three words, and no pattern of code."""
    return len(_WORD.findall(text)) > 2 and not _NOT_PROSE.search(text.replace("\r\n", "\n"))


def in_prose(change: Callable[[str], str]) -> AttackTemplate:
    """A perturbation of prose that leaves every other response unchanged."""

    def template(context: AttackContext) -> str:
        return change(context.response) if is_prose(context.response) else context.response

    return template


def bold(text: str) -> str:
    return _FIRST_SENTENCE.sub(r"**\1**", text)


def bullets(text: str) -> str:
    return _LINE.sub("- ", text)


def trailing_blanks(text: str) -> str:
    return re.sub(r"$", "  ", text, flags=re.MULTILINE) + "\n"


def line_breaks(text: str) -> str:
    return re.sub(r"(?<=[a-z)][.!?]) +(?=[A-Z])", "\n", text)


def first_letter(text: str) -> str:
    return text[:1].swapcase() + text[1:] if _PLAIN_WORD.match(text) else text


def quotes(text: str) -> str:
    """Typographic quotes. Apostrophes change inside words only: elsewhere they may be feet, minutes or a derivative."""
    return _APOSTROPHE.sub("’", _QUOTED.sub(r"“\1”", text))


def opener(words: str) -> Callable[[str], str]:
    """Prepend words to a sentence only: they would change the meaning of a heading, a list or a refusal."""

    def change(text: str) -> str:
        fits = _OPENS_WITH_A_WORD.match(text) and not _REFUSES.match(text)
        return words + text if fits else text

    return change


def closer(words: str) -> Callable[[str], str]:
    """Append words after a complete sentence only."""
    return lambda text: text + words if _SENTENCE_ENDS.search(text) else text


def reworded(rules: tuple[Rule, ...]) -> Callable[[str], str]:
    """Replace the phrases of the rules in one pass, except in quoted text.

    A phrase that begins with a lower-case letter also matches its capitalised form, and its replacement is capitalised.
    """
    found = [r'(?:"[^"\n]*"|“[^”\n]*”)', *(f"({_pattern(phrase)})" for phrase, _ in rules)]
    phrases = re.compile("|".join(found))

    def put(match: re.Match[str]) -> str:
        if match.lastindex is None:
            return match[0]
        other = rules[match.lastindex - 1][1]
        return other[0].upper() + other[1:] if match[0][0].isupper() else other

    return lambda text: phrases.sub(put, text)


def _pattern(phrase: str) -> str:
    """The phrase as whole words, in either case of its first letter if that is lower-case."""
    behind, first, rest = _FIRST_LETTER.findall(phrase)[0]
    first = f"[{first}{first.upper()}]" if first.islower() else first
    return rf"{behind}\b{first}{rest}" + (r"\b" if phrase[-1].isalnum() else "")

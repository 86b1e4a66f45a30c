"""Phrases that say the same: contractions, and turns of ordinary English prose.

A rule is (a regular expression without groups of its own, what to put in its place). A phrase belongs here where its
other form fits every sentence in which it is found, which is why many end in a look at the next word. "It is" and "I
have" become no "it's" and "I've", because no sentence ends in these; "it's" is written out only before words that
leave no doubt, because it is "it has" in "it's been".
"""

Rule = tuple[str, str]

# Not before a pronoun and not in a question ("don't you?" is not "do not you?"), and not before a capital ("Don't Look
# Up").
_IN_A_STATEMENT = (
    r"(?=[.,;:!]|\s+(?!(?:you|he|she|it|we|they|there|this|that|these|those|one|only|just|merely|but)\b)[a-z])"
    r"(?![^.!?\n]*\?)"
)
_NEGATED = ("do", "does", "did", "is", "are", "was", "were", "has", "have", "had")
_NEGATED += ("would", "should", "could")
CONTRACTED: tuple[Rule, ...] = (
    *((f"{verb} not{_IN_A_STATEMENT}", f"{verb}n't") for verb in _NEGATED),
    (f"cannot{_IN_A_STATEMENT}", "can't"),
    (f"(?<!free )(?<!good )will not{_IN_A_STATEMENT}", "won't"),
)
# 'm, 're, 've and 'll are one word each; 's is "is" before the words that are named here.
WRITTEN_OUT: tuple[Rule, ...] = (
    *((f"{verb}n['’]t{_IN_A_STATEMENT}", f"{verb} not") for verb in _NEGATED),
    (f"can['’]t{_IN_A_STATEMENT}", "cannot"),
    (f"won['’]t{_IN_A_STATEMENT}", "will not"),
    (r"I['’]m(?= [a-z])", "I am"),
    (r"I['’]ve(?= [a-z])", "I have"),
    (r"I['’]ll(?= [a-z])", "I will"),
    *(
        (rf"{who}['’]{short}(?= [a-z])", f"{who} {long}")
        for who in ("you", "we", "they")
        for short, long in (("re", "are"), ("ve", "have"), ("ll", "will"))
    ),
    *(
        (rf"{what}['’]s(?= (?:{following})\b)", f"{what} is")
        for what, following in (
            ("it", "a|an|the|important|essential|crucial|best|possible|necessary|hard|difficult"),
            ("that", "a|an|the|why|what|how|because"),
            ("there", "a|an|no|nothing"),
            ("here", "a|an|the|how|what|why|one|some|my|your"),
        )
    ),
)

_PARAPHRASED = r"""
for example => for instance
for instance => for example
However,(?= [a-zI]) => But
Additionally, => In addition,
In addition, => Additionally,
in addition to => besides
Furthermore, => Moreover,
Moreover, => Furthermore,
Therefore, => Thus,
Thus, => Therefore,
Hence, => Therefore,
For this reason, => Therefore,
Consequently, => As a result,
As a result, => Consequently,
Overall, => All in all,
In conclusion, => To conclude,
In summary, => To sum up,
To summarize, => To sum up,
In general, => Generally,
Similarly, => Likewise,
Likewise, => Similarly,
Specifically, => In particular,
In particular, => Specifically,
First of all, => First,
Firstly, => First,
Secondly, => Second,
Lastly, => Finally,
Nevertheless, => Even so,
Nonetheless, => Even so,
(?<!is )(?<!was )(?<!are )(?<!were )(?<!be )(?<!been )in order to => to
due to the fact that => because
due to(?= (?:its|their|his|her|your|the|a|an|this|these)\b)(?! the fact) => because of
because of => on account of
in the event that => if
at this point in time => now
prior to => before
even though => although
although => though
whereas => while
regarding => about
such as(?= (?!(?:it|is|are|was|were|to)\b)[a-z]) => like
(?<!data )(?<!blood )types of => kinds of
a type of => a kind of
a variety of(?= (?:[\w-]+ )?(?!(?:is|was|has|as|this|its)\b)[\w-]+[^s\W]s\b) => a range of
a wide range of => a wide variety of
a wide variety of => a wide range of
a large number of => a great number of
There are several(?= [a-z])(?! (?:of|who|that|which|to|in)\b) => There are a number of
There are many(?= [a-z])(?! (?:of|who|that|which|more|to|in)\b) => There are a lot of
(?<!quite )(?<!such )(?<!what )(?<!not )a lot of => lots of
(?<!more )(?<!most )(?<!as )(?<!so )numerous => many
additional => extra
the entire => the whole
nearly(?= (?:all|every|\d)) => almost
almost(?= (?:all|every|\d)) => nearly
approximately(?= [^\s:]) => about
roughly(?= \d) => about
especially => particularly
particularly => especially
typically => usually
frequently(?! asked) => often
rarely => seldom
primarily => mainly
significantly => considerably
quickly => rapidly
commonly used => widely used
is able to => can
are able to => can
is located => is situated
are located => are situated
(?<![tT]o )begin with => start with
begin by => start by
start by => begin by
begins with => starts with
begins to => starts to
began to => started to
attempting to => trying to
attempted to => tried to
to obtain => to get
utilize => use
utilizes => uses
utilizing => using
utilized => used
carried out => performed
assist you => help you
provide you with => give you
provides you with => gives you
allows you to => lets you
allow you to => let you
allowing you to => letting you
helps to(?= [a-z]) => helps
ensure that => make sure that
make sure that => ensure that
make sure to => be sure to
be sure to => make sure to
difficult to => hard to
(?<!an )essential(?= (?:to|for|that)\b) => vital
crucial(?= (?:to|for|that)\b) => vital
is important because => matters because
take into account => take into consideration
keep in mind that => remember that
Please note that => Note that
it['’]s important to note that => it should be noted that
it is important to note that => it should be noted that
Here are(?= [^.\n]*:) => Below are
feel free to => do not hesitate to
I hope this helps => I hope that this helps
If you have any(?= (?:other |further |more )?questions) => Should you have any
around the world => all over the world
each(?= (?:day|week|month|year|time)\b) => every
(?<!almost )(?<!nearly )every(?= (?:day|week|month|year)\b) => each
as well(?=[.!]) => too
"""
PARAPHRASED: tuple[Rule, ...] = tuple(
    (phrase, other)
    for line in _PARAPHRASED.strip().splitlines()
    for phrase, other in [line.split(" => ")]
)

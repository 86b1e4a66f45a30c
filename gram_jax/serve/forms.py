"""What the endpoints take, with limits. Unknown keys are refused where the protocol is ours, ignored elsewhere."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

MOST_CHARACTERS = 400_000  # of one text
MOST_ITEMS = 1024  # of one request
MOST_RESPONSES = 64  # to rank in one list

Text = Annotated[str, Field(max_length=MOST_CHARACTERS)]


class Turn(BaseModel):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: Text


def _with_a_question(turns: list[Turn]) -> list[Turn]:
    if all(turn.role == "assistant" for turn in turns):
        raise PydanticCustomError("no_question", "expected messages that the assistant answers")
    return turns


Turns = Annotated[
    list[Turn], Field(min_length=1, max_length=MOST_ITEMS), AfterValidator(_with_a_question)
]
Asked = Annotated[
    Annotated[Text, Tag("text")] | Annotated[Turns, Tag("messages")],
    Discriminator(lambda given: "messages" if isinstance(given, list) else "text"),
]
TextOrList = Annotated[
    Annotated[Text, Tag("text")] | Annotated[list[Text], Tag("list"), Field(max_length=MOST_ITEMS)],
    Discriminator(lambda given: "list" if isinstance(given, list) else "text"),
]
Responses = Annotated[list[Text], Field(min_length=1, max_length=MOST_RESPONSES)]


class _Ours(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Pair(_Ours):
    """A prompt, as text or messages, and two responses."""

    prompt: Asked
    first: Text
    second: Text


class Pairs(_Ours):
    """Several pairs."""

    pairs: Annotated[list[Pair], Field(max_length=MOST_ITEMS)]


# One kind is chosen by its shape, so that an error speaks of that kind alone.
OneOrMore = Annotated[
    Annotated[Pair, Tag("pair")] | Annotated[Pairs, Tag("pairs")],
    Discriminator(
        lambda given: "pairs" if isinstance(given, dict) and "pairs" in given else "pair"
    ),
]
PairOrList = Annotated[
    Annotated[Pair, Tag("pair")] | Annotated[list[Pair], Tag("list"), Field(max_length=MOST_ITEMS)],
    Discriminator(lambda given: "list" if isinstance(given, list) else "pair"),
]


class Verdict(BaseModel):
    """first, second: P(this response is better), sum 1; margin: log-odds; position_bias: as of a PairScore."""

    first: float
    second: float
    margin: float
    position_bias: float
    shortened: bool


class Verdicts(BaseModel):
    """In the order of the pairs."""

    verdicts: list[Verdict]


class ToRank(_Ours):
    """Responses to a prompt; method and order_mode as in docs/ranking.md."""

    prompt: Asked
    responses: Responses
    method: Literal["groups", "round_robin", "bradley_terry", "knockout", "linear"] | None = None
    order_mode: Literal["both", "one"] = "both"


class Ranked(BaseModel):
    """ranking: indices, best first; scores: strengths in log-odds."""

    ranking: list[int]
    scores: list[float]
    ties: float
    cycles: float | None
    comparisons: int
    shortened: bool


class GetReward(BaseModel):
    """OpenRLHF's: queries are prompts with their responses; labels are the slot of a reference."""

    query: Annotated[list[Text], Field(max_length=MOST_ITEMS)]
    prompts: Annotated[list[Text], Field(max_length=MOST_ITEMS)] = []
    labels: Annotated[list[Text | None], Field(max_length=MOST_ITEMS)] | None = None


class GotReward(BaseModel):
    """One value for each query."""

    rewards: list[float]
    scores: list[float]
    extra_logs: dict[str, list[float]]


class ScoreEvaluation(BaseModel):
    """LLaMA-Factory's: rendered conversations, each with its response at the end."""

    model: Text = ""
    messages: Annotated[list[Text], Field(max_length=MOST_ITEMS)]
    max_length: int | None = None


class ScoredEvaluation(BaseModel):
    """One score for each conversation."""

    id: str
    object: str = "score.evaluation"
    model: str
    scores: list[float]


class Compare(BaseModel):
    """A group judge's: a prompt's responses; or a part of them, with the size of the group, that waits for the rest."""

    conversation_history: Turns
    responses: Responses
    group_size: Annotated[int, Field(ge=1, le=MOST_RESPONSES)] | None = None


class Compared(BaseModel):
    """rewards: win rates; comparison_results: P(i better than j) for every pair that was compared."""

    rewards: list[float]
    comparison_results: list[dict[str, Any]]


class Classify(BaseModel):
    """vLLM's, with pairs as its inputs: the classes are the judge's two verdicts."""

    model: Text = ""
    input: PairOrList


class Classified(BaseModel):
    """label: the verdict's; probs: of both, in the order of the judge's labels."""

    id: str
    object: str = "list"
    created: int
    model: str
    data: list[dict[str, Any]]


class Score(BaseModel):
    """vLLM's: text_1 are prompts, one or one for each response of text_2; the score is the server's reward."""

    model: Text = ""
    text_1: TextOrList
    text_2: TextOrList


class Scored(BaseModel):
    """score: of each response, in their order."""

    id: str
    object: str = "list"
    created: int
    model: str
    data: list[dict[str, Any]]


class Model(BaseModel):
    """vLLM's, of a judge. created: when the server started, seconds since 1970."""

    id: str
    object: str = "model"
    created: int
    owned_by: str = "gram_jax"


class Models(BaseModel):
    """vLLM's list, of one."""

    object: str = "list"
    data: list[Model]


class Health(BaseModel):
    """ok, or dead where the thread that scores has ended."""

    status: str


class Readiness(BaseModel):
    """ready, starting or stopping; of which model, and the hash of how it is asked."""

    status: str
    model: str
    judge: str


class Problem(BaseModel):
    """What went wrong, without any of the texts."""

    code: str
    message: str


class Failure(BaseModel):
    """Body of every error."""

    error: Problem

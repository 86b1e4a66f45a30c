"""Types of request fields that several protocols share, with their limits."""

from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    model_validator,
)
from pydantic_core import PydanticCustomError

from gram_jax.formatting import plural
from gram_jax.judge.messages import ROLE_NAMES
from gram_jax.serve.items import Item

MAX_CHARACTERS = 400_000  # of one text
MAX_ITEMS = 16_384  # of one request
MAX_TOKENS = 1 << 20  # of a comparison that comes as token ids; the judge's own budget is smaller
MAX_RESPONSES = 64  # of one list to compare

Text = Annotated[str, Field(max_length=MAX_CHARACTERS)]
Texts = Annotated[list[Annotated[Text, Item]], Field(max_length=MAX_ITEMS)]
Responses = Annotated[list[Text], Field(min_length=1, max_length=MAX_RESPONSES)]


def _known_role(role: str) -> str:
    if role not in ROLE_NAMES:
        raise PydanticCustomError(
            "role", "expected one of {roles}", {"roles": ", ".join(ROLE_NAMES)}
        )
    return role


class MessageField(BaseModel):
    """One message of a conversation; content is text or parts of text. Calls of tools are shown, images refused."""

    model_config = ConfigDict(extra="allow")

    role: Annotated[str, AfterValidator(_known_role)]
    content: Text | list[dict[str, Any]] | None = None


def _check_question(messages: list[MessageField]) -> list[MessageField]:
    if all(ROLE_NAMES[message.role] == "assistant" for message in messages):
        raise PydanticCustomError("no_question", "expected messages that the assistant answers")
    return messages


Messages = Annotated[
    list[MessageField], Field(min_length=1, max_length=MAX_ITEMS), AfterValidator(_check_question)
]


def by_list(one: str, several: str) -> Discriminator:
    """Chooses a union's type by whether a list was sent, so that an error message is about that type alone."""
    return Discriminator(lambda given: several if isinstance(given, list) else one)


PromptField = Annotated[
    Annotated[Text, Tag("text")] | Annotated[Messages, Tag("messages")], by_list("text", "messages")
]
TextOrList = Annotated[
    Annotated[Text, Tag("text")] | Annotated[Texts, Tag("list")], by_list("text", "list")
]


class StrictRequest(BaseModel):
    """A request of this server's own protocol, which rejects unknown keys; vendors' protocols ignore them."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _only_known_keys(cls, given: Any) -> Any:
        """Names the fields that there are, because the name of an unknown key is the client's text."""
        if isinstance(given, dict) and (unknown := given.keys() - cls.model_fields.keys()):
            fields = cls.model_fields.items()
            missing = [name for name, field in fields if field.is_required() and name not in given]
            text = f"{plural(len(unknown), 'unknown field')}; the fields are {', '.join(cls.model_fields)}"
            if missing:
                text += f"; missing: {', '.join(missing)}"
            raise PydanticCustomError("unknown_fields", "{problem}", {"problem": text})
        return given


class PairRequest(StrictRequest):
    """A prompt, as text or messages, and two responses."""

    prompt: PromptField
    first: Text
    second: Text

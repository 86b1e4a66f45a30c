"""Items of one request: an invalid item does not affect the others."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Generic, TypeVar

from pydantic import BaseModel, Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator

from gram_jax.errors import GramError
from gram_jax.serve.errors import RequestError, describe_problems, request_error

T = TypeVar("T")
R = TypeVar("R")


class ItemError(BaseModel):
    """Error of the item at an index of the request, whose result is null."""

    index: int
    code: str
    message: str


# Of a response with results for several items.
ItemErrors = Annotated[list[ItemError], Field(default_factory=list)]


class InvalidItem:
    """An item that does not have the form that is expected."""

    def __init__(self, error: ValidationError, value: Any):
        self.problems = error.errors(include_url=False, include_context=False, include_input=False)
        self.value = value


def _keep_invalid(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    try:
        return validate(value)
    except ValidationError as error:
        return InvalidItem(error, value)


# An item of a list: an invalid one does not make the list invalid.
Item = WrapValidator(_keep_invalid)


class Items(Generic[T]):
    """The usable items of a request.

    given: validated, each perhaps an InvalidItem. place: their field. read: makes what is needed of an item; may raise
    RequestError or GramError. Raises RequestError if there are items and none is usable.
    """

    def __init__(self, place: str, given: Sequence[Any], read: Callable[[Any], T]):
        self.count, self.good, self.errors = len(given), dict[int, T](), list[ItemError]()
        self._place = place
        self._status = 422  # of the whole request, if no item is usable
        for at, item in enumerate(given):
            try:
                if isinstance(item, InvalidItem):
                    message = describe_problems(item.problems, item.value, ("body", place, at))
                    raise RequestError(422, "invalid", message)
                self.good[at] = read(item)
            except (RequestError, GramError) as error:
                self._fail(at, error)
        self._check()

    @property
    def values(self) -> list[T]:
        """The usable items."""
        return list(self.good.values())

    def results(
        self, judge: Callable[[list[T]], Sequence[R]], *, alone: bool = True
    ) -> list[R | None]:
        """A result for each item, in their order; None for those with an error.

        judge: gives results for several items. If it raises GramError, parts of the items are judged, so that an item
        that cannot be judged fails alone; unless (alone) the result of an item depends on the others.
        """
        found: dict[int, R] = {}

        def judge_some(indices: list[int]) -> None:
            try:
                results = judge([self.good[at] for at in indices])
            except GramError as error:
                if not alone:
                    raise
                if len(indices) == 1:
                    self._fail(indices[0], error)
                    return
                judge_some(indices[: len(indices) // 2])
                judge_some(indices[len(indices) // 2 :])
            else:
                found.update(zip(indices, results, strict=True))

        if self.good:
            judge_some(list(self.good))
        self._check()
        return [found.get(at) for at in range(self.count)]

    def _fail(self, at: int, error: Exception) -> None:
        failed = request_error(error)
        message = failed.detail
        if failed.code != "invalid":
            message = f"body.{self._place}.{at}: {message}"
        self.errors.append(ItemError(index=at, code=failed.code, message=message))
        self.errors.sort(key=lambda one: one.index)
        if failed.status_code >= 500:
            self._status = failed.status_code

    def _check(self) -> None:
        if self.count and len(self.errors) == self.count:
            message = "; ".join(one.message for one in self.errors[:8])
            raise RequestError(self._status, self.errors[0].code, message)

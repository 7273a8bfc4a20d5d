"""The one error that a user is meant to read."""


class ImmunityError(Exception):
    """Something the caller can put right: says what was expected, what came, and what to try.

    Its text is always one line, so that the command line can print it as it is.
    """

    def __init__(self, *, expected: str, got: str, remedy: str) -> None:
        self.expected, self.got, self.remedy = (" ".join(part.split()) for part in (expected, got, remedy))
        super().__init__(f"expected {self.expected}; got {self.got}; try {self.remedy}")

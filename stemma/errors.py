"""Every way stemma can refuse, as one tree.

StemmaError
├── BadRequest        400  bad_request       a parameter, filter or body that cannot be meant
├── Unauthorized      401  unauthorized      no key, or one that is not known
├── Forbidden         403  forbidden         a key that may not do this
├── NotFound          404  not_found         no such collection, image or route
├── Conflict          409  conflict          same id with other bytes; a second writer; other weights
├── TooLarge          413  too_large         a body, picture or batch above its named limit
├── UnsupportedType   415  unsupported_type  a file format that is not on the list
├── BadImage          422  bad_image         a picture that cannot be decoded
├── Overloaded        429  overloaded        your share of the queue is full; retry_after_s
├── Unavailable       503  unavailable       the system cannot answer now; retry_after_s
│   └── StaleRouting  503  unavailable       a host was asked under another epoch (never leaves the cluster)
├── DeadlineExceeded  504  deadline          the time the caller gave is over
└── Corrupt           500  corrupt           stored bytes do not match their checksum

Each error carries the noun it failed on (``subject``) and a sentence that names the way out. All survive pickling,
because actors send them to one another.
"""

from __future__ import annotations

from typing import Any, ClassVar


class StemmaError(Exception):
    """Base of all refusals: a stable ``code``, an HTTP ``status``, the ``subject`` it failed on, a sentence."""

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500

    def __init__(self, detail: str, *, subject: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.subject = subject
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.detail, self.subject, self.retry_after_s))

    def problem(self) -> dict[str, Any]:
        """The RFC 9457 problem document of this error."""
        body: dict[str, Any] = {
            "type": f"urn:stemma:error:{self.code}",
            "title": type(self).__name__,
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
        }
        if self.subject is not None:
            body["subject"] = self.subject
        if self.retry_after_s is not None:
            body["retry_after_s"] = self.retry_after_s
        return body


def _rebuild(kind: type[StemmaError], detail: str, subject: str | None, retry_after_s: float | None) -> StemmaError:
    return kind(detail, subject=subject, retry_after_s=retry_after_s)


class BadRequest(StemmaError):
    code, status = "bad_request", 400


class Unauthorized(StemmaError):
    code, status = "unauthorized", 401


class Forbidden(StemmaError):
    code, status = "forbidden", 403


class NotFound(StemmaError):
    code, status = "not_found", 404


class Conflict(StemmaError):
    code, status = "conflict", 409


class TooLarge(StemmaError):
    code, status = "too_large", 413


class UnsupportedType(StemmaError):
    code, status = "unsupported_type", 415


class BadImage(StemmaError):
    code, status = "bad_image", 422


class Overloaded(StemmaError):
    code, status = "overloaded", 429


class Unavailable(StemmaError):
    code, status = "unavailable", 503


class StaleRouting(Unavailable):
    """A host was asked under an epoch it does not hold; the asker refreshes its routing and asks again."""


class DeadlineExceeded(StemmaError):
    code, status = "deadline", 504


class Corrupt(StemmaError):
    code, status = "corrupt", 500


def error_from_problem(problem: dict[str, Any]) -> StemmaError:
    """The exception a problem document stands for; an unknown code becomes a plain ``StemmaError``."""
    kinds = {kind.code: kind for kind in StemmaError.__subclasses__()}
    kind = kinds.get(str(problem.get("code")), StemmaError)
    return kind(
        str(problem.get("detail", "the server gave no detail")),
        subject=problem.get("subject"),
        retry_after_s=problem.get("retry_after_s"),
    )

"""How many requests come: a rate, tokens a day, or a number of users."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Discriminator, Tag

from planner.schema.fields import Count, Part, Positive, ShareOfOne, described


class RequestRate(Part):
    """Demand as a rate."""

    requests_per_s: Positive = described("Mean rate of requests.", unit="requests/s")


class TokenVolume(Part):
    """Demand as a volume of tokens, spread evenly over the day; `burst_factor` adds the peak."""

    tokens_per_day: Positive = described(
        "Tokens a day, input and output together, cached input and hidden output included.",
        unit="tokens/day",
    )


class UserDemand(Part):
    """Demand as people: users x active_fraction x requests_per_user_per_hour / 3600."""

    users: Count = described("People who have access.", unit="people")
    requests_per_user_per_hour: Positive = described(
        "Requests that an active user sends in an hour.", unit="requests/hour"
    )
    active_fraction: ShareOfOne = described(
        "Share of the users active in the hour that is planned for.", unit="fraction", default=1.0
    )


_FORMS: dict[str, str] = {
    "requests_per_s": "RequestRate",
    "tokens_per_day": "TokenVolume",
    "users": "UserDemand",
    "requests_per_user_per_hour": "UserDemand",
    "active_fraction": "UserDemand",
}


def _form(value: Any) -> str:
    """Which way of giving demand this is."""
    if isinstance(value, BaseModel):
        return type(value).__name__
    if isinstance(value, dict):
        for key, form in _FORMS.items():
            if key in value:
                return form
        # A misspelt key: take the form it is closest to, so that the right one is suggested.
        for key in value:
            stem = str(key).split("_")[0]
            for known, form in _FORMS.items():
                if len(stem) > 3 and known.startswith(stem[:4]):
                    return form
    return "RequestRate"


Demand = Annotated[
    Annotated[RequestRate, Tag("RequestRate")]
    | Annotated[TokenVolume, Tag("TokenVolume")]
    | Annotated[UserDemand, Tag("UserDemand")],
    Discriminator(_form),
]

"""Dates in declared formats as numbers, by regular expressions and integer arithmetic that engines agree on."""

from __future__ import annotations

import re
from datetime import date

import ibis
import ibis.expr.types as ir

_MONTHS = "janfebmaraprmayjunjulaugsepoctnovdec"
_DIRECTIVES = {
    "%Y": ("year", r"(\d{4})"),
    "%y": ("short_year", r"(\d{2})"),
    "%m": ("month", r"(0?[1-9]|1[0-2])"),
    "%b": ("month_name", "(?i:(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec))"),
    "%B": (
        "month_name",
        "(?i:(january|february|march|april|may|june|july|august|september|october|november|december))",
    ),
    "%d": ("day", r"(0?[1-9]|[12]\d|3[01])"),
    "%H": ("hour", r"([01]?\d|2[0-3])"),
    "%M": ("minute", r"([0-5]\d)"),
    "%S": ("second", r"([0-5]\d)"),
    "%I": ("half_hour", r"(0?[1-9]|1[0-2])"),
    "%p": ("half", r"(?i:([ap])\.?m\.?)"),
    "%f": ("fraction", r"(\d{1,9})"),
    "%z": ("offset", r"((?i:Z|UTC|GMT)|[+-]\d{2}(?::?\d{2}){0,2})"),
    "%a": ("weekday", r"([\p{L}]+)"),
    "%A": ("weekday", r"([\p{L}]+)"),
}
_TEXTS = ("month_name", "half", "offset", "weekday", "fraction")


def check_formats(formats: list[str]) -> list[str]:
    """Check that formats consist of known directives and hold a year.

    Raises:
        ValueError: If one does not.
    """
    for text in formats:
        unknown = set(re.findall(r"%.?", text)) - set(_DIRECTIVES)
        if unknown:
            raise ValueError(f"'{text}' holds {min(unknown)}; known are {', '.join(_DIRECTIVES)}")
        if "%Y" not in text and "%y" not in text:
            raise ValueError(f"'{text}' holds no year")
        if ("%I" in text) != ("%p" in text):
            raise ValueError(
                f"'{text}' needs both %I, the hour from 1 to 12, and %p, AM or PM; %H is the hour from 0 to 23"
            )
        fields = [_DIRECTIVES[part][0] for part in re.findall(r"%.", text)]
        twice = {name for name in fields if fields.count(name) > 1}
        if twice:
            raise ValueError(f"'{text}' holds the {min(twice).replace('_', ' ')} twice")
    return formats


def _compile(text: str) -> tuple[str, dict[str, int]]:
    """Return the regular expression of a format and the group of each of its fields."""
    parts = re.split(r"(%.)", text)
    groups = {_DIRECTIVES[part][0]: place for place, part in enumerate((p for p in parts if p in _DIRECTIVES), start=1)}
    return "^" + "".join(_DIRECTIVES[p][1] if p in _DIRECTIVES else re.escape(p) for p in parts) + "$", groups


def _fields(column: ir.StringValue, text: str) -> tuple[ir.BooleanValue, dict[str, ir.Value]]:
    pattern, groups = _compile(text)
    known = {name: column.re_extract(pattern, group) for name, group in groups.items()}
    fields: dict[str, ir.Value] = {name: value.try_cast("int64") for name, value in known.items() if name not in _TEXTS}
    if "short_year" in fields:
        # As in POSIX: 69 to 99 are of the last century.
        short = fields.pop("short_year")
        fields["year"] = short + (short >= 69).ifelse(1900, 2000)
    if "month_name" in known:
        fields["month"] = (ibis.literal(_MONTHS).find(known["month_name"].lower().left(3)) // 3 + 1).cast("int64")
    if "half" in known:
        fields["hour"] = fields.pop("half_hour") % 12 + (known["half"].lower() == "p").ifelse(12, 0)
    if "fraction" in known:
        fields["fraction"] = (ibis.literal("0.") + known["fraction"]).try_cast("float64")
    if "offset" in known:
        digits = known["offset"].re_replace("[^0-9]", "").rpad(6, "0")
        hours, minutes, rest = (digits.substr(place, 2).try_cast("int64") for place in (0, 2, 4))
        fields["offset"] = known["offset"].startswith("-").ifelse(-1, 1) * (hours * 3600 + minutes * 60 + rest)
    return column.re_search(pattern), fields


def _first_fitting(column: ir.StringValue, formats: list[str], number: object) -> ir.Value:
    """The number that ``number`` makes of the fields of the first format that fits, or null."""
    branches = []
    for text in formats:
        fits, fields = _fields(column, text)
        branches.append((fits.fill_null(False), number(fields).cast("float64")))  # type: ignore[operator]
    return ibis.cases(*branches, else_=ibis.null("float64"))


def year(column: ir.StringValue, formats: list[str]) -> ir.Value:
    """Return the year of dates written in one of the formats, as a number; null where none fits."""
    return _first_fitting(column, formats, lambda fields: fields["year"])


def age(column: ir.StringValue, formats: list[str], reference: date) -> ir.Value:
    """Return the full years between dates and a day; where a format has no month or day, its first one counts."""

    def years(fields: dict[str, ir.Value]) -> ir.Value:
        month, day = fields.get("month", ibis.literal(1)), fields.get("day", ibis.literal(1))
        later = month * 100 + day > reference.month * 100 + reference.day
        return ibis.literal(reference.year) - fields["year"] - later.ifelse(1, 0)

    return _first_fitting(column, formats, years)


def seconds(column: ir.StringValue, formats: list[str]) -> ir.Value:
    """Return the seconds since 1970 of points in time, in UTC where no offset stands; null where no format fits.

    Days are counted by Hinnant's ``days_from_civil`` (chrono-compatible low-level date algorithms).
    """

    def number(fields: dict[str, ir.Value]) -> ir.Value:
        month, day = fields.get("month", ibis.literal(1)), fields.get("day", ibis.literal(1))
        shifted = fields["year"] - (month <= 2).ifelse(1, 0)
        era = shifted // 400
        of_era = shifted - era * 400
        of_year = (153 * (month + (month > 2).ifelse(-3, 9)) + 2) // 5 + day - 1
        days = era * 146097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719468
        clock = [fields.get(name, ibis.literal(0)) for name in ("hour", "minute", "second")]
        whole = days * 86400 + clock[0] * 3600 + clock[1] * 60 + clock[2] - fields.get("offset", ibis.literal(0))
        return whole + fields["fraction"] if "fraction" in fields else whole

    return _first_fitting(column, formats, number)

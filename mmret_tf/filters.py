"""Filters on the attributes of items (属性过滤): a condition in, the rows that fulfil it out.

A condition is a dictionary that can be written in JSON, in the form that MongoDB made common:
`{"colour": "red", "price": {"$gte": 10, "$lt": 20}}`. Section 6(1) of the document, where a shop's
customers search among what they can pay.
"""

from __future__ import annotations

import bisect
import functools
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

OPERATORS = ("$eq", "$ne", "$in", "$nin", "$gt", "$gte", "$lt", "$lte")

NOTHING = ([], np.empty(0, np.intp))


class AttributeTable:
    """The attributes of some rows, sorted by value when a condition first asks for them.

    Args:
        records: for each row what is known of it, `{name: value}`, as `check_records` allows. A
            value is a string, a number, a boolean, or a list of these, any of which may fulfil a
            condition. Other values (None, a dictionary) are kept, and fulfil none.

    >>> table = AttributeTable([{"colour": "red", "price": 5}, {"colour": "blue"}, {"price": 30}])
    >>> table.mask({"price": {"$lt": 10}}).tolist()
    [True, False, False]
    >>> table.mask({"$or": [{"colour": "blue"}, {"price": 30}]}).tolist()
    [False, True, True]
    """

    def __init__(self, records: Sequence[Mapping[str, Any]]):
        self.records = records
        self._columns: dict[str, dict[str, tuple[list, np.ndarray]]] = {}

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.records)

    @functools.cached_property
    def names(self) -> set[str]:
        """The attributes that any row has."""
        return set().union(*self.records)

    def mask(self, where: Mapping[str, Any]) -> np.ndarray:
        """Which rows fulfil a condition; bool `[rows]`.

        Args:
            where: what `check_condition` allows. A row without the attribute fulfils no condition
                on it but "$ne", "$nin" and "$not".
        """
        fulfilled = np.ones(len(self), bool)
        for name, condition in where.items():
            if name == "$not":
                fulfilled &= ~self.mask(condition)
            elif name == "$and":
                fulfilled &= np.logical_and.reduce([self.mask(each) for each in condition])
            elif name == "$or":
                fulfilled &= np.logical_or.reduce([self.mask(each) for each in condition])
            elif isinstance(condition, Mapping):
                for operator, operand in condition.items():
                    fulfilled &= self._compared(name, operator, operand)
            else:
                fulfilled &= self._compared(name, "$eq", condition)
        return fulfilled

    def _compared(self, name: str, operator: str, operand: Any) -> np.ndarray:
        if operator in ("$ne", "$nin"):
            return ~self._compared(name, {"$ne": "$eq", "$nin": "$in"}[operator], operand)
        found = np.zeros(len(self), bool)
        for each in operand if operator == "$in" else [operand]:
            values, rows = self._sorted(name).get(_kind(each), NOTHING)
            left, right = bisect.bisect_left(values, each), bisect.bisect_right(values, each)
            start, stop = {
                "$gt": (right, len(values)),
                "$gte": (left, len(values)),
                "$lt": (0, left),
                "$lte": (0, right),
            }.get(operator, (left, right))
            found[rows[start:stop]] = True
        return found

    def _sorted(self, name: str) -> dict[str, tuple[list, np.ndarray]]:
        """By kind of value: the values of an attribute in ascending order, and their rows."""
        if name not in self._columns:
            pairs: dict[str, list] = {}
            for row, record in enumerate(self.records):
                value = record.get(name)
                for each in value if isinstance(value, list | tuple) else [value]:
                    if kind := _kind(each):
                        pairs.setdefault(kind, []).append((each, row))
            self._columns[name] = {
                kind: ([value for value, _ in each], np.array([row for _, row in each]))
                for kind, each in ((kind, sorted(each)) for kind, each in pairs.items())
            }
        return self._columns[name]


def check_records(records: Sequence[Mapping[str, Any]]) -> None:
    """Refuse records that are no dictionaries, or have names that are no strings; ValueError."""
    for row, record in enumerate(records):
        if not isinstance(record, Mapping) or not all(isinstance(name, str) for name in record):
            raise ValueError(
                "attributes must be a dictionary {name: value} an item; "
                f"got {record!r:.80} in row {row}"
            )


def check_condition(where: Mapping[str, Any], names: Collection[str]) -> None:
    """Refuse what is no condition on attributes of these names. Section 6(1).

    A condition is `{name: value}` (equality), `{name: {operator: value}}` with "$eq", "$ne", "$gt",
    "$gte", "$lt", "$lte", and "$in" and "$nin" that take a list of values; or `{"$and": [...]}`,
    `{"$or": [...]}` of conditions, `{"$not": condition}`. All parts of one dictionary must hold.
    Strings are compared by code point, and never with numbers.

    Args:
        where: the condition.
        names: the attributes that items have.

    Raises:
        ValueError: another form, an unknown operator, or a name that no item has.

    >>> check_condition({"$or": [{"price": {"$lt": 9}}, {"sale": True}]}, ["price", "sale"])
    >>> check_condition({"price": {"$gt": 3, "$lte": 9}, "$not": {"colour": "red"}}, ["price"])
    Traceback (most recent call last):
    ValueError: no item has the attribute 'colour'; there are: price
    """
    if not isinstance(where, Mapping):
        raise ValueError(f'a condition must be a dictionary as {{"price": 5}}; got {where!r:.80}')
    for name, condition in where.items():
        if name == "$not":
            check_condition(condition, names)
        elif name in ("$and", "$or"):
            if not isinstance(condition, list | tuple) or not condition:
                raise ValueError(f"{name} must have a list of conditions; got {condition!r:.80}")
            for each in condition:
                check_condition(each, names)
        elif name not in names:
            known = ", ".join(sorted(names)) or "none"
            raise ValueError(f"no item has the attribute {name!r:.80}; there are: {known:.200}")
        elif isinstance(condition, Mapping):
            _check_operators(name, condition)
        else:
            _check_operators(name, {"$eq": condition})


def _check_operators(name: str, operators: Mapping[str, Any]) -> None:
    if not operators:
        raise ValueError(f"{name!r} must have a value or an operator, as {{'$gte': 5}}; got {{}}")
    for operator, operand in operators.items():
        if operator not in OPERATORS:
            raise ValueError(
                f"{name!r} has the unknown operator {operator!r:.80}; there are: "
                + ", ".join(OPERATORS)
            )
        is_many = operator in ("$in", "$nin")
        if is_many and not isinstance(operand, list | tuple | set | frozenset):
            raise ValueError(f"{operator} of {name!r} must have a list; got {operand!r:.80}")
        for each in operand if is_many else [operand]:
            if not _kind(each):
                raise ValueError(
                    f"{name!r} can be compared with strings, numbers and booleans; got {each!r:.80}"
                )


def _kind(value: Any) -> str | None:
    """What a value can be compared with; None for what is no value."""
    if isinstance(value, bool | np.bool_):
        return "boolean"
    if isinstance(value, int | float | np.integer | np.floating):
        return None if math.isnan(value) else "number"
    return "string" if isinstance(value, str) else None

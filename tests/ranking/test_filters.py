"""Conditions on attributes: by eye, and against Python's own comparisons."""

import operator

import numpy as np
import pytest

from mmret_tf.ranking.filters import AttributeTable, check_condition, checked_records

SHOES = [
    {"colour": "red", "price": 50, "sizes": [40, 41], "new": True},
    {"colour": "red", "price": np.float32(80.5), "sizes": [42], "new": np.False_},
    {"colour": "蓝色", "price": np.int64(120), "sizes": []},
    {"colour": "green", "price": None},
    {},
    {"price": "50", "colour": {"top": "red"}},
    {"price": float("nan"), "digits": 10**400},
]


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        ({}, [0, 1, 2, 3, 4, 5, 6]),
        ({"colour": "red"}, [0, 1]),
        ({"colour": "蓝色"}, [2]),
        ({"price": 50}, [0]),  # not the string "50"
        ({"price": np.float64(50)}, [0]),
        ({"price": "50"}, [5]),
        ({"colour": {"$ne": "red"}}, [2, 3, 4, 5, 6]),
        ({"colour": {"$in": ["red", "green", "no such"]}}, [0, 1, 3]),
        ({"colour": {"$in": []}}, []),
        ({"colour": {"$nin": ["red", "green"]}}, [2, 4, 5, 6]),
        ({"price": {"$gt": 50}}, [1, 2]),
        ({"price": {"$gte": 50}}, [0, 1, 2]),
        ({"price": {"$lt": 80.5}}, [0]),
        ({"price": {"$lte": 80.5}}, [0, 1]),
        ({"price": {"$gte": 60, "$lt": 100}}, [1]),
        ({"price": {"$gt": float("inf")}}, []),
        ({"price": {"$lt": 10**400}}, [0, 1, 2]),
        ({"digits": {"$gt": np.float64(1e300)}}, [6]),
        ({"colour": {"$gte": "red"}}, [0, 1, 2]),  # by code point
        ({"sizes": 41}, [0]),
        ({"sizes": {"$gt": 40}}, [0, 1]),
        ({"new": True}, [0]),
        ({"new": 1}, []),  # a boolean is not a number
        ({"colour": "red", "price": {"$lt": 60}}, [0]),
        ({"$and": [{"colour": "red"}, {"price": {"$gt": 60}}]}, [1]),
        ({"$or": [{"price": 120}, {"new": False}]}, [1, 2]),
        ({"$not": {"colour": "red"}}, [2, 3, 4, 5, 6]),
        ({"$not": {"$or": [{"colour": "red"}, {"colour": "green"}]}, "price": 120}, [2]),
    ],
)
def test_conditions_by_eye(where, rows):
    table = AttributeTable(SHOES)
    check_condition(where, table.names)
    assert np.flatnonzero(table.mask(where)).tolist() == rows


@pytest.mark.parametrize("name", ["lt", "le", "gt", "ge", "eq", "ne"])
def test_comparisons_are_those_of_python(name):
    values = np.random.default_rng(0).integers(0, 20, 500).tolist()
    table = AttributeTable([{"value": value} for value in values])
    sign = {"le": "$lte", "ge": "$gte"}.get(name, f"${name}")
    for bound in (-1, 0, 7, 7.5, 19, 20):
        right = [getattr(operator, name)(value, bound) for value in values]
        assert table.mask({"value": {sign: bound}}).tolist() == right


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("red", "must be a dictionary"),
        ({"color": "red"}, "no item has the attribute 'color'; there are: colour, digits, new"),
        ({"$nor": []}, r"no item has the attribute '\$nor'"),
        ({"price": {"gte": 5}}, r"unknown operator 'gte'; there are: \$eq"),
        ({"price": {}}, "must have a value or an operator"),
        ({"price": {"$in": 5}}, r"\$in and \$nin of 'price' must have a list; got 5"),
        ({"price": {"$in": "567"}}, "must have a list"),
        ({"price": None}, "strings, numbers and booleans; got None"),
        ({"price": float("nan")}, "got nan"),
        ({"price": np.float32("nan")}, "got nan"),
        ({"price": [5, 6]}, r"got \[5, 6\]"),
        ({"$or": []}, "needs a list of conditions"),
        ({"$and": {"price": 5}}, "needs a list of conditions"),
        ({"$not": "red"}, "must be a dictionary"),
        ({"$or": [{"$and": [{"prise": 5}]}]}, "no item has the attribute 'prise'"),
    ],
)
def test_other_conditions_are_refused_by_check_and_search_alike(where, reason):
    table = AttributeTable(SHOES)
    for refuse in (lambda: check_condition(where, table.names), lambda: table.mask(where)):
        with pytest.raises(ValueError, match=reason):
            refuse()


@pytest.mark.parametrize("record", ["red", None, {1: "red"}, [("colour", "red")]])
def test_attributes_are_dictionaries(record):
    with pytest.raises(ValueError, match="attributes must be a dictionary .* in row 1"):
        checked_records([{}, record], 2)

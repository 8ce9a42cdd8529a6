from __future__ import annotations

import re
import time
from contextlib import suppress
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from planner.errors import InputError
from planner.schema.yaml_positions import (
    FAST_LOADER,
    MAX_BYTES,
    MAX_DEPTH,
    MAX_PROBLEMS,
    field_name,
    load_yaml_with_positions,
    parse_yaml,
    shown,
)

LOADERS = [yaml.SafeLoader, FAST_LOADER]


def refused(text: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        load_yaml_with_positions(text, "f")
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize("loader", LOADERS)
def test_places_of_values_and_keys(loader: Any) -> None:
    text = "a: 1\nb:\n  - x\n  - {c: [2, 3]}\nd:\n"
    document = parse_yaml(text, "f", loader)
    assert document.value == {"a": 1, "b": ["x", {"c": [2, 3]}], "d": None}
    assert document.positions == {
        (): (1, 1),
        ("a",): (1, 4),
        ("b",): (3, 3),
        ("b", 0): (3, 5),
        ("b", 1): (4, 5),
        ("b", 1, "c"): (4, 9),
        ("b", 1, "c", 0): (4, 10),
        ("b", 1, "c", 1): (4, 13),
        ("d",): (5, 1),  # an absent value is where its key is
    }
    assert document.key_positions == {
        ("a",): (1, 1),
        ("b",): (2, 1),
        ("b", 1, "c"): (4, 6),
        ("d",): (5, 1),
    }


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("False", False),
        ("yes", "yes"),
        ("NO", "NO"),
        ("on", "on"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("~", None),
        ("null", None),
        ("'null'", "null"),
        ("12", 12),
        ("+12", 12),
        ("010", 10),
        ("0x1F", 31),
        ("0o17", 15),
        ("1e3", 1000.0),
        ("1.5E-3", 0.0015),
        (".5", 0.5),
        ("5.", 5.0),
        ("1_000", "1_000"),
        ("1e", "1e"),
        ("-", "-"),
        ("'12'", "12"),
        ("0.1%", "0.1%"),
        ('"\\u00e9"', "é"),
    ],
)
def test_scalars_of_yaml_1_2(text: str, value: object) -> None:
    for loader in LOADERS:
        found = parse_yaml(f"a: [{text}]" if text != "-" else f"a: {text!r}", "f", loader).value
        assert isinstance(found, dict)
        item = found["a"][0] if text != "-" else found["a"]
        assert item == value
        assert type(item) is type(value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "f:1:1: the file is empty"),
        ("# only this\n", "f:1:1: the file is empty"),
        ("---\n", "f:1:1: the file is empty"),
        ("a: &x 1", "f:1:4: anchors are not allowed; remove '&x'"),
        ("a: *x", "f:1:4: aliases are not allowed; write the value out where it is used"),
        ("*x : 1", "f:1:1: aliases are not allowed; write the value out where it is used"),
        ("a: !!python/name:os.system x", "remove 'tag:yaml.org,2002:python/name:os.system'"),
        ("<<: {a: 1}", "f:1:1: merge keys are not allowed; write the fields out"),
        ("a: 1\na: 2", "f:2:1: duplicate key 'a' (first given in line 1); keep one of the two"),
        ("{a: {x: 1}, 'a': {x: 2}}", "f:1:13: duplicate key 'a' (first given in line 1)"),
        ("1: a\n'1': b", "f:1:1: the key '1' is not text; put it in quotes"),
        ("true: a", "f:1:1: the key 'true' is not text; put it in quotes"),
        ("? [a]\n: b", "f:1:3: a key must be text; put lists and mappings after the colon"),
        ("a: .inf", "f:1:4: .inf is not a finite number; give a finite number"),
        ("a: -.INF", "f:1:4: -.INF is not a finite number; give a finite number"),
        ("a: 2e18", "f:1:4: the number '2e18' is too large; numbers go up to 1e+18"),
        ("a: " + "9" * 9000, "is too large; numbers go up to 1e+18"),
        ("a: 1\n--- \nb: 2", "f:2:1: a second document starts here; keep one document per file"),
        ("a: \x00", "f:1:4: control character U+0000; remove it"),
        ("a: é\nb: \x1b[0m", "f:2:4: control character U+001B; remove it"),
        ("a: \ud800", "f:1:4: control character U+D800; remove it"),
        ("a: [1", "f:2:1: not valid YAML: "),
        ("a: b: c", "f:1:5: not valid YAML: mapping values are not allowed in this context"),
        ("%YAML 9.9\n---\na: 1", "not valid YAML: "),
    ],
)
def test_refusals(text: str, told: str) -> None:
    assert any(told in line for line in refused(text)), refused(text)


def test_all_mistakes_are_collected() -> None:
    text = "a: &x 1\nb: *x\na: .nan\n<<: {}\n"
    assert [line.split(": ")[0] for line in refused(text)] == [
        "f:1:4",
        "f:2:4",
        "f:3:1",
        "f:3:4",
        "f:4:1",
    ]


def test_a_syntax_error_comes_after_what_was_found_before_it() -> None:
    found = refused("a: *x\nb: [")
    assert len(found) == 2
    assert "aliases" in found[0]


def test_reading_stops_after_many_mistakes() -> None:
    assert len(refused("a: 1\n" * 1000)) == MAX_PROBLEMS


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 5_000, 1_000_000])
@pytest.mark.parametrize("opening", ["[", "{a: ", "- "])
def test_deep_nesting_ends_early(depth: int, opening: str) -> None:
    start = time.perf_counter()
    found = refused(opening * depth)
    assert "nested deeper than 50 levels" in found[0]
    assert time.perf_counter() - start < 2


def test_the_allowed_depth_is_read() -> None:
    value, _ = load_yaml_with_positions("[" * MAX_DEPTH + "]" * MAX_DEPTH, "f")
    assert isinstance(value, list)


def test_half_a_megabyte_is_read_fast() -> None:
    text = "\n".join(f"- {{name: w{i}, value: {i}.5, list: [1, 2, 3]}}" for i in range(11_000))
    assert len(text) > 450_000
    start = time.perf_counter()
    value, _ = load_yaml_with_positions(text, "f")
    assert time.perf_counter() - start < 2
    assert isinstance(value, list)
    assert len(value) == 11_000


def test_too_large_a_text() -> None:
    assert "larger than the 5 MB" in refused("#" * (MAX_BYTES + 1))[0]


def test_names_and_quotes_are_fit_for_a_terminal() -> None:
    assert field_name(("workloads", 2, "slo", 0, "limit_ms")) == "workloads[2].slo[0].limit_ms"
    assert field_name(("a", "\x1b[31m")) == r"a.'\x1b[31m'"
    assert shown("x" * 99, 5) == "'xxxxx…'"


# PyYAML writes YAML 1.1, in which 08, 0o7 and 1e5 are text and stand without quotes; they are
# numbers in the YAML 1.2 that is read.
plain = st.text(
    st.characters(categories=["L", "N", "P", "Zs"], max_codepoint=0x2FFF), max_size=12
).filter(lambda text: re.fullmatch(r"[-+]?[.0-9]+([eE][-+]?[0-9]+)?|0o[0-7]+", text) is None)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**15), 10**15) | plain,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(plain, inner, max_size=4),
    max_leaves=12,
)


@given(values.filter(lambda value: value is not None))
def test_what_is_written_is_read_back(value: object) -> None:
    text = yaml.safe_dump(value, allow_unicode=True)
    text = text.removesuffix("...\n")
    found, positions = load_yaml_with_positions(text, "f")
    assert found == value
    assert () in positions


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    with suppress(InputError):
        load_yaml_with_positions(text, "f")

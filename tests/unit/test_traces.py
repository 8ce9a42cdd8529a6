"""Readers of traces: every public format, packed or not, and what can be wrong in a file."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from planner.errors import InputError
from planner.traces import Trace, read_trace
from planner.traces.prefix import prefix_reuse

PLAIN = "arrival_s,input_tokens,output_tokens\n10,100,20\n10.5,200,30\n13,300,40\n"


def written(folder: Path, text: str, name: str = "trace.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def complaints(path: Path) -> list[str]:
    with pytest.raises(InputError) as caught:
        read_trace(path)
    return [str(problem).replace(str(path), path.name) for problem in caught.value.problems]


def check_plain(trace: Trace) -> None:
    assert trace.arrival_s.tolist() == [0, 0.5, 3]
    assert trace.input_tokens.tolist() == [100, 200, 300]
    assert trace.output_tokens.tolist() == [20, 30, 40]
    assert trace.requests == 3
    assert trace.span_s == 3
    assert trace.rate_per_s == pytest.approx(2 / 3)


def test_a_plain_trace(tmp_path: Path) -> None:
    trace = read_trace(written(tmp_path, PLAIN))
    check_plain(trace)
    assert trace.block_ids is None
    assert trace.model is None
    assert trace.start_hour is None
    assert trace.notes == ()
    with pytest.raises(ValueError, match="read-only"):
        trace.arrival_s[0] = 1.0


def test_packed_files_are_known_by_their_content(tmp_path: Path) -> None:
    path = tmp_path / "packed.csv"
    path.write_bytes(gzip.compress(PLAIN.encode(), mtime=0))
    check_plain(read_trace(path))


def test_a_byte_order_mark_and_windows_line_ends_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "windows.csv"
    path.write_bytes(b"\xef\xbb\xbf" + PLAIN.replace("\n", "\r\n").encode())
    check_plain(read_trace(path))


def test_azure_2023_has_seven_decimals(tmp_path: Path) -> None:
    text = (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:30:00.0000000,100,20\n"
        "2023-11-16 18:30:00.5000001,200,30\n"
        "2023-11-16 18:30:03.0000000,300,40\n"
    )
    trace = read_trace(written(tmp_path, text))
    check_plain(trace)
    assert trace.start_hour == pytest.approx(18.5)


def test_azure_2024_has_a_time_zone(tmp_path: Path) -> None:
    text = (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2024-05-10 23:59:59.500000+00:00,100,20\n"
        "2024-05-11 00:00:00+00:00,200,30\n"
        "2024-05-11 00:00:02.500000+00:00,300,40\n"
    )
    trace = read_trace(written(tmp_path, text))
    check_plain(trace)
    assert trace.start_hour == pytest.approx(24, abs=0.001)


def test_burstgpt_drops_failed_rows_and_keeps_models(tmp_path: Path) -> None:
    text = (
        "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,"
        "Log Type\n"
        "5,1,2.5,ChatGPT,100,20,120,Conversation log\n"
        "5.5,,1,GPT-4,200,30,230,API log\n"
        "6,2,1,GPT-4,70,0,70,API log\n"
        "8,2,1,ChatGPT,300,40,340,API log\n"
    )
    trace = read_trace(written(tmp_path, text))
    check_plain(trace)
    assert trace.model == ("ChatGPT", "GPT-4", "ChatGPT")
    assert trace.notes == ("1 rows without input or output tokens failed and are left out",)
    assert trace.of_model("ChatGPT").input_tokens.tolist() == [100, 300]
    with pytest.raises(InputError, match=r"no request for 'x'; it has ChatGPT, GPT-4"):
        trace.of_model("x")


def test_mooncake_counts_milliseconds_and_blocks(tmp_path: Path) -> None:
    text = (
        '{"timestamp": 1000, "input_length": 100, "output_length": 20, "hash_ids": [0]}\n'
        '{"timestamp": 1500, "input_length": 200, "output_length": 30, "hash_ids": [0]}\n\n'
        '{"timestamp": 4000, "input_length": 300, "output_length": 40, "hash_ids": [7]}\n'
    )
    trace = read_trace(written(tmp_path, text, "trace.jsonl"))
    check_plain(trace)
    assert trace.block_ids == ((0,), (0,), (7,))
    assert trace.block_tokens == 512


def test_blocks_in_a_csv_may_be_ranges(tmp_path: Path) -> None:
    text = "arrival_s,input_tokens,output_tokens,prefix_block_ids\n0,1500,9,0-1 7\n1,900,9,0 5\n"
    assert read_trace(written(tmp_path, text)).block_ids == ((0, 1, 7), (0, 5))


def test_ids_may_be_hashes_of_64_bits(tmp_path: Path) -> None:
    text = f"arrival_s,isl,osl,block_ids\n0,900,9,0 {2**64 - 1}\n1,900,9,0 {2**64 - 1}\n"
    trace = read_trace(written(tmp_path, text))
    assert trace.block_ids == ((0, 2**63 - 1),) * 2
    reuse = prefix_reuse(trace)
    assert reuse is not None
    assert reuse.found_tokens(1024).tolist() == [0, 512]


def test_columns_in_milliseconds_are_named_so(tmp_path: Path) -> None:
    text = "isl,timestamp_ms,osl\n100,10000,20\n200,10500,30\n300,13000,40\n"
    check_plain(read_trace(written(tmp_path, text)))


def test_rows_out_of_order_are_sorted_and_it_is_said(tmp_path: Path) -> None:
    text = "arrival_s,input_tokens,output_tokens\n13,300,40\n10,100,20\n10.5,200,30\n"
    trace = read_trace(written(tmp_path, text))
    check_plain(trace)
    assert trace.notes == ("1 rows were earlier than the row before them and have been sorted",)


def test_all_bad_rows_are_told_at_once(tmp_path: Path) -> None:
    text = (
        "arrival_s,input_tokens,output_tokens\n"
        "0,1,1\nnan,1,1\nsoon,1,1\n1,-5,1\n1,1,many\n1,1\n1,2.5,1\n1,1e300,1\n"
    )
    give = "give seconds, or a date and time as 2024-05-10 00:00:01"
    whole = "give a whole number of tokens"
    assert complaints(written(tmp_path, text)) == [
        f"trace.csv:3: arrival_s: is 'nan', which is no time in seconds; {give}",
        f"trace.csv:4: arrival_s: is 'soon', neither seconds nor a date and time; {give}",
        f"trace.csv:5: input_tokens: is -5, not a number from 0 to 100,000,000; {whole}",
        f"trace.csv:6: output_tokens: is 'many', not a number of tokens; {whole}",
        "trace.csv:7: has 2 columns, the header 3; give every row all columns",
        f"trace.csv:8: input_tokens: is 2.5, not a whole number; {whole}",
        f"trace.csv:9: input_tokens: is 1e300, not a number from 0 to 100,000,000; {whole}",
    ]


def test_ten_bad_rows_are_told_and_the_rest_counted(tmp_path: Path) -> None:
    told = complaints(written(tmp_path, PLAIN + "x,1,1\n" * 25))
    assert len(told) == 11
    assert told[-1] == "trace.csv: and 15 more bad rows"


def test_bad_lines_of_json(tmp_path: Path) -> None:
    good = '{"timestamp": 0, "input_length": 5, "output_length": 2, "hash_ids": [1]}\n'
    text = (
        good
        + "{\n"
        + good.replace('"output_length": 2, ', "")
        + good.replace("[1]", '"1"')
        + good.replace("5", "true")
        + good.replace("0", '"x"')
    )
    assert complaints(written(tmp_path, text, "trace.jsonl")) == [
        "trace.jsonl:2: is not a JSON object; one request a line",
        "trace.jsonl:3: output_length: is missing; give every line the keys of the first",
        "trace.jsonl:4: hash_ids: is not a list of whole numbers",
        "trace.jsonl:5: input_length: is not a whole number of tokens",
        "trace.jsonl:6: timestamp: is 'x', neither seconds nor a date and time",
    ]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "is empty; give a trace or a dump"),
        (b"\n \n", "is empty; give a trace or a dump"),
        (b"arrival_s,input_tokens,output_tokens\n", "has no request"),
        (b"arrival_s,input_tokens,output_tokens\n0,5,0\n", "has only failed requests"),
        (b"\x00\x01\x02", "is not a text"),
        (b"arrival_s,input_tokens,output_tokens\n\xff,1,1\n", "is not a text in UTF-8"),
        (gzip.compress(PLAIN.encode(), mtime=0)[:-9], "cannot be unpacked"),
        (b"time,tokens\n1,2\n", "no column gives the time of arrival or the input tokens"),
        (b"isl,input_tokens,osl,t_s\n1,1,1,1\n", "'isl' and 'input_tokens' both give the input"),
        (b'{"status": "success", "data": {"resultType": "matrix", "result": []}}', "single req"),
        (b'{"status": "succ', "is no JSON"),
        (b"[" * 100_000, "is n"),
        (
            b"arrival_s,input_tokens,output_tokens,block_ids\n0,9000,5,1\n",
            "more tokens than its blocks hold",
        ),
    ],
)
def test_files_that_are_no_trace(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_bytes(content)
    assert complaint in complaints(path)[0]


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    assert "No such file" in complaints(tmp_path / "none.csv")[0]
    assert "cannot be read" in complaints(tmp_path)[0]


def test_a_file_of_several_chunks(tmp_path: Path) -> None:
    rows = 150_000
    body = "".join(f"{index / 8},{index % 7 + 1},{index % 5 + 1}\n" for index in range(rows))
    trace = read_trace(written(tmp_path, PLAIN.partition("\n")[0] + "\n" + body))
    assert trace.requests == rows
    assert np.array_equal(trace.arrival_s, np.arange(rows) / 8)
    assert np.array_equal(trace.input_tokens, np.arange(rows) % 7 + 1)

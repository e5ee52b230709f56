"""The rules of billing that are pure."""

from typing import Any

from m3_router.money.bill import Bill, Usage, continued
from m3_router.money.bill_lines import bill_from
from m3_router.money.bill_records import Line


def bill_of(**fields: Any) -> Bill:
    return bill_from(Line(time=1.0, request_id="r", path="/v1/completions", **fields))


def test_an_undisturbed_answer_is_what_its_worker_says() -> None:
    assert continued(bill_of(input_tokens=7, output_tokens=9), Usage(10, 4, 0, 2)) == Usage(10, 4, 0, 2)


def test_a_continuation_has_its_prompt_once_and_both_parts_of_its_output() -> None:
    # 1,000 tokens of prompt, of which 600 were cached; 40 tokens came before the first worker died. The second one
    # reads 1,040 tokens and adds 25.
    bill = bill_of(continuations=1, input_tokens=1000, cached_tokens=600, output_tokens=40)
    assert continued(bill, Usage(1040, 1024, 0, 25)) == Usage(1000, 600, 0, 65)
